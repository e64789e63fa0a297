//! Services: defaults, validation, and the cluster addresses and node ports they hold.

pub mod allocate;
pub mod defaults;
pub mod families;
pub mod validate;

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::value::{set, text, unset};
use crate::alloc::{Allocators, cluster_ips, record};
use crate::field::FieldErrors;
use crate::status::Status;
use crate::strategy::{Context, NameRule, Reservation, Strategy};

/// Rules of Services.
pub struct Services {
    /// Addresses and ports.
    pub allocators: Arc<Allocators>,
}

#[async_trait]
impl Strategy for Services {
    fn name_rule(&self) -> NameRule {
        NameRule::Dns1035
    }

    fn default(&self, object: &mut Value) {
        defaults::service(object);
    }

    fn prepare_create(&self, _cx: &Context, object: &mut Value) {
        defaults::list_cluster_ip(object);
        set(object, "status", json!({"loadBalancer": {}}));
    }

    fn prepare_update(&self, _cx: &Context, new: &mut Value, old: &Value) {
        defaults::carry_over(new, old);
        // No other type has a load balancer to tell of.
        if text(&new["spec"], "type") != "LoadBalancer" && !unset(&new["status"]["loadBalancer"]) {
            set(&mut new["status"], "loadBalancer", json!({}));
        }
    }

    fn validate(&self, _cx: &Context, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        validate::service(object, &mut errors);
        errors
    }

    fn validate_update(&self, cx: &Context, new: &Value, old: &Value) -> FieldErrors {
        let mut errors = self.validate(cx, new);
        validate::update(new, old, &mut errors);
        errors
    }

    fn validate_status_update(&self, _cx: &Context, new: &Value, _old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::new();
        validate::status(new, &mut errors);
        errors
    }

    async fn allocate(
        &self,
        cx: &Context,
        new: &mut Value,
        old: Option<&Value>,
    ) -> Result<Box<dyn Reservation>, Status> {
        self.allocators.ready(cx.objects.as_ref()).await?;
        allocate::allocate(&self.allocators, new, old)
            .map(|taken| Box::new(taken) as Box<dyn Reservation>)
            .map_err(|errors| Status::invalid("", "Service", super::value::name(new), &errors))
    }

    async fn created(&self, cx: &Context, object: &Value) {
        for address in cluster_ips(object) {
            record::add(cx.objects.as_ref(), address, object).await;
        }
    }

    async fn updated(&self, cx: &Context, new: &Value, old: &Value) {
        let (now, before) = (cluster_ips(new), cluster_ips(old));
        for address in now.iter().filter(|a| !before.contains(a)) {
            record::add(cx.objects.as_ref(), *address, new).await;
        }
        for address in before.iter().filter(|a| !now.contains(a)) {
            record::remove(cx.objects.as_ref(), *address).await;
        }
    }

    async fn deleted(&self, cx: &Context, object: &Value) {
        // Filled first: else the address given back here would be taken again from the list read later.
        if let Err(error) = self.allocators.ready(cx.objects.as_ref()).await {
            tracing::warn!(%error, "reading the addresses in use");
        }
        self.allocators.release(object);
        for address in cluster_ips(object) {
            record::remove(cx.objects.as_ref(), address).await;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
