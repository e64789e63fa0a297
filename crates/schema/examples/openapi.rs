//! Prints the OpenAPI v3 document of a group and version with one resource per kind: `openapi apps v1`.

use schema::openapi::{Resource, v3_group};
use schema::{GROUPS, Table};

fn main() {
    let mut args = std::env::args().skip(1);
    let (group, version) = (args.next().unwrap_or_default(), args.next().unwrap_or_else(|| "v1".to_owned()));
    let folder = GROUPS.iter().find(|(name, _)| *name == group).map_or("", |(_, folder)| folder);
    let prefix = format!("{folder}/{version}.");
    let verbs = &["get", "list", "create", "update", "patch", "delete"];
    let kinds = Table::builtin().types().filter(|ty| ty.is_kind() && ty.name().starts_with(&prefix));
    let named: Vec<(String, &str)> =
        kinds.map(|ty| (format!("{}s", ty.short_name().to_lowercase()), ty.short_name())).collect();
    let resources: Vec<Resource<'_>> = named
        .iter()
        .map(|(name, kind)| Resource {
            name,
            group: &group,
            version: &version,
            kind,
            namespaced: true,
            verbs,
        })
        .collect();
    println!("{}", v3_group(&group, &version, &resources, "v1.33.0"));
}
