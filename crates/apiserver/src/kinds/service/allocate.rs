//! Writes cluster addresses, address families and node ports into a Service about to be stored.

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use super::super::value::{child, elements, int, list, remove, set, text};
use super::defaults::{headless, needs_cluster_ip, needs_health_port, needs_node_port};
use super::families;
use crate::alloc::{AllocError, Allocators, Taken, cluster_ips, ports};
use crate::field::{FieldError, FieldErrors};

fn one(error: FieldError) -> FieldErrors {
    FieldErrors(vec![error])
}

/// Takes what the Service needs beyond what its old form holds; what it no longer needs is freed when kept.
pub fn allocate(
    allocators: &Arc<Allocators>,
    new: &mut Value,
    old: Option<&Value>,
) -> Result<Taken, FieldErrors> {
    let mut taken = allocators.reserve();
    let held_addresses = old.map(cluster_ips).unwrap_or_default();
    let held_ports = old.map(ports).unwrap_or_default();
    if let Some(spec) = child(new, "spec") {
        if needs_cluster_ip(spec) {
            families::settle(&allocators.families(), spec, old.map(|old| &old["spec"]))?;
            addresses(&mut taken, spec, &held_addresses)?;
        } else {
            for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                remove(spec, key);
            }
        }
        if needs_node_port(spec) {
            node_ports(&mut taken, spec, &held_ports)?;
        }
        if needs_health_port(spec) {
            health_port(&mut taken, spec, &held_ports)?;
        }
    }
    let (addresses, ports) = (cluster_ips(new), ports(new));
    held_addresses.iter().filter(|a| !addresses.contains(a)).for_each(|a| taken.free_address(*a));
    held_ports.iter().filter(|p| !ports.contains(p)).for_each(|p| taken.free_port(*p));
    Ok(taken)
}

fn addresses(taken: &mut Taken, spec: &mut Value, held: &[IpAddr]) -> Result<(), FieldErrors> {
    if headless(spec) {
        set(spec, "clusterIP", "None");
        set(spec, "clusterIPs", json!(["None"]));
        return Ok(());
    }
    let wished = list(spec, "clusterIPs").to_vec();
    let mut all: Vec<IpAddr> = Vec::new();
    let families: Vec<String> =
        list(spec, "ipFamilies").iter().filter_map(|f| f.as_str().map(str::to_owned)).collect();
    for (i, family) in families.iter().enumerate() {
        let refused =
            |e: AllocError| one(FieldError::invalid("spec.clusterIPs", json!(wished), e.to_string()));
        let wish: Option<IpAddr> = wished.get(i).and_then(Value::as_str).and_then(|ip| ip.parse().ok());
        all.push(match wish {
            Some(ip) if held.contains(&ip) => ip,
            Some(ip) => {
                taken.address(ip).map_err(refused)?;
                ip
            }
            None => taken.any_address(family).map_err(refused)?,
        });
    }
    if let Some(first) = all.first() {
        set(spec, "clusterIP", first.to_string());
    }
    let all: Vec<String> = all.iter().map(ToString::to_string).collect();
    set(spec, "clusterIPs", json!(all));
    Ok(())
}

fn node_ports(taken: &mut Taken, spec: &mut Value, held: &[u16]) -> Result<(), FieldErrors> {
    let refused = |i: usize, n: i64, e: AllocError| {
        one(FieldError::invalid(format!("spec.ports[{i}].nodePort"), n, e.to_string()))
    };
    // Wishes before gifts, so that a gift never takes what a later port of the same Service wishes for.
    for (i, port) in list(spec, "ports").iter().enumerate() {
        let Some(wish) = int(port, "nodePort").filter(|n| *n != 0) else { continue };
        let number = u16::try_from(wish).unwrap_or(0);
        if !held.contains(&number) {
            taken.port(number).map_err(|e| refused(i, wish, e))?;
        }
    }
    // The same port over TCP and UDP gets the same node port.
    let mut by_port: Vec<(i64, i64)> = list(spec, "ports")
        .iter()
        .filter_map(|p| Some((int(p, "port")?, int(p, "nodePort").filter(|n| *n != 0)?)))
        .collect();
    let mut used: Vec<(String, i64)> = list(spec, "ports")
        .iter()
        .filter_map(|p| Some((text(p, "protocol").to_owned(), int(p, "nodePort").filter(|n| *n != 0)?)))
        .collect();
    for (i, port) in elements(spec, "ports").enumerate() {
        if int(port, "nodePort").is_some_and(|n| n != 0) {
            continue;
        }
        let protocol = text(port, "protocol").to_owned();
        let shared = by_port
            .iter()
            .find(|(p, n)| Some(*p) == int(port, "port") && !used.contains(&(protocol.clone(), *n)))
            .map(|(_, n)| *n);
        let number = match shared {
            Some(number) => number,
            None => i64::from(taken.any_port().map_err(|e| refused(i, 0, e))?),
        };
        set(port, "nodePort", number);
        by_port.push((int(port, "port").unwrap_or(0), number));
        used.push((protocol, number));
    }
    Ok(())
}

fn health_port(taken: &mut Taken, spec: &mut Value, held: &[u16]) -> Result<(), FieldErrors> {
    let path = "spec.healthCheckNodePort";
    match int(spec, "healthCheckNodePort").filter(|n| *n != 0) {
        Some(wish) => {
            let number = u16::try_from(wish).unwrap_or(0);
            if !held.contains(&number) {
                taken.port(number).map_err(|e| one(FieldError::invalid(path, wish, e.to_string())))?;
            }
        }
        None => {
            let number = taken.any_port().map_err(|e| one(FieldError::invalid(path, 0, e.to_string())))?;
            set(spec, "healthCheckNodePort", number);
        }
    }
    Ok(())
}
