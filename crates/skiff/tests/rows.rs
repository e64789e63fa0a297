//! What upstream's suites ask of Services, row by row of the requirements, on one cluster of two nodes with the real
//! kubectl. A row's number is that of the conformance list; names are those of the files of upstream's `test/e2e/network`.
//!
//! | row | test |
//! |---|---|
//! | 25 to 28 types | [`types::rows_25_to_28_types_change_into_each_other`] |
//! | 29 node port | [`types::row_29_a_node_port_on_every_address`] |
//! | 30, 31, 35, 36 affinity, its time-out | [`types::rows_30_31_35_36_affinity`] |
//! | 32, 33, 34, 37 the API of Services | [`api::rows_32_33_34_37_services`] |
//! | 38, 39, 40 endpoints and ports | [`types::rows_38_39_40_endpoints_and_ports`] |
//! | 41 Endpoints; 44, 45 hand-written slices | [`api::row_41_endpoints`], [`api::rows_44_45_slices`] |
//! | 46, 47 and service_cidrs.go | [`api::rows_46_47_networks_and_addresses`] |
//! | service.go: hairpin, source address, ports, external addresses, labels | [`types::service_go_reach`] |
//! | service.go: node ports refused, released, reused | [`types::service_go_node_ports`] |
//! | service.go: unready, terminating, failed Pods; health checks | [`policies::service_go_readiness`] |
//! | service.go: internalTrafficPolicy | [`policies::service_go_internal_policy`] |
//! | service.go: SCTP and no module; TCP and UDP on one port | [`policies::service_go_protocols`] |
//! | service.go: restart of everything | `services.rs`, `addresses_survive_a_crash` |
//! | loadbalancer.go: Local, health, client address, back and forth | [`policies::loadbalancer_go_local`] |
//! | loadbalancer.go: UDP through changes, no gap in an update | [`policies::loadbalancer_go_changes`] |
//! | loadbalancer.go: ranges, types, classes, no node ports | `services.rs` |
//! | networking.go: paths, proxy's health, external flush | [`api::networking_go`]; `proxy/tests/run.rs` |
//! | networking.go: dial matrix, updates, 2 kB | [`types::networking_go_matrix`] |
//! | conntrack.go | `proxy/tests/conntrack.rs` |
//! | traffic_distribution.go, topology_hints.go | [`policies::traffic_distribution_go`] |
//! | kube_proxy.go: CLOSE_WAIT | [`api::networking_go`] |
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "rows/api.rs"]
mod api;
#[path = "rows/policies.rs"]
mod policies;
#[path = "rows/types.rs"]
mod types;
#[path = "rows/world.rs"]
mod world;

use testkit::eventually;
use testkit::machine::Machine;
use world::{SOON, World};

type Part = fn(&World);

#[test]
fn services_do_what_upstreams_suites_ask() {
    let before = Machine::now();
    {
        let world = World::start("rows");
        let parts: [(&str, Part); 18] = [
            ("25-28", types::rows_25_to_28_types_change_into_each_other),
            ("29", types::row_29_a_node_port_on_every_address),
            ("30, 31, 35, 36", types::rows_30_31_35_36_affinity),
            ("38-40", types::rows_38_39_40_endpoints_and_ports),
            ("reach", types::service_go_reach),
            ("node ports", types::service_go_node_ports),
            ("matrix", types::networking_go_matrix),
            ("32-34, 37", api::rows_32_33_34_37_services),
            ("41", api::row_41_endpoints),
            ("44, 45", api::rows_44_45_slices),
            ("46, 47", api::rows_46_47_networks_and_addresses),
            ("networking", api::networking_go),
            ("internal policy", policies::service_go_internal_policy),
            ("protocols", policies::service_go_protocols),
            ("distribution", policies::traffic_distribution_go),
            ("readiness", policies::service_go_readiness),
            ("Local", policies::loadbalancer_go_local),
            ("changes", policies::loadbalancer_go_changes),
        ];
        for (name, part) in parts {
            let began = std::time::Instant::now();
            part(&world);
            println!("{name}: {:?}", began.elapsed());
        }
    }
    eventually("the machine is as before", SOON, || {
        Machine::now().difference(&before).is_empty().then_some(())
    });
}
