//! Which kinds the server serves: for those controllers that work on all of them.

use http::Request;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroupList, APIResource, APIResourceList};
use kube::Client;
use kube::core::{ApiResource, GroupVersionKind};

/// A kind as discovery tells of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Kind {
    pub resource: ApiResource,
    pub namespaced: bool,
    pub verbs: Vec<String>,
}

impl Kind {
    /// Whether the server knows all these verbs for it.
    pub fn can(&self, verbs: &[&str]) -> bool {
        verbs.iter().all(|verb| self.verbs.iter().any(|v| v == verb))
    }
}

/// All kinds in the preferred version of their group, and the groups that could not be asked.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    pub kinds: Vec<Kind>,
    pub failures: Vec<String>,
}

/// Asks the server. A group whose server is down is a failure of that group alone.
pub(crate) async fn discover(client: &Client) -> Result<Catalog, kube::Error> {
    let groups: APIGroupList = get(client, "/apis").await?;
    let versions = groups.groups.iter().filter_map(|g| {
        let first = g.versions.first().map(|v| &v.group_version);
        g.preferred_version.as_ref().map(|v| &v.group_version).or(first)
    });
    let mut catalog = Catalog::default();
    read(client, "v1", "/api/v1", &mut catalog).await;
    for version in versions {
        read(client, version, &format!("/apis/{version}"), &mut catalog).await;
    }
    Ok(catalog)
}

async fn read(client: &Client, version: &str, path: &str, catalog: &mut Catalog) {
    match get::<APIResourceList>(client, path).await {
        Ok(list) => {
            let kinds = list.resources.into_iter().filter(|r| !r.name.contains('/'));
            catalog.kinds.extend(kinds.map(|r| kind(version, r)));
        }
        Err(error) => catalog.failures.push(format!("{version}: {}", crate::kit::message_of(&error))),
    }
}

fn kind(group_version: &str, resource: APIResource) -> Kind {
    let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
    let group = resource.group.as_deref().filter(|g| !g.is_empty()).unwrap_or(group);
    let version = resource.version.as_deref().filter(|v| !v.is_empty()).unwrap_or(version);
    let gvk = GroupVersionKind::gvk(group, version, &resource.kind);
    Kind {
        resource: ApiResource::from_gvk_with_plural(&gvk, &resource.name),
        namespaced: resource.namespaced,
        verbs: resource.verbs,
    }
}

async fn get<T: serde::de::DeserializeOwned>(client: &Client, path: &str) -> Result<T, kube::Error> {
    let request = Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
    client.request(request).await
}
