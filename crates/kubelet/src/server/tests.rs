//! Who may come in.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use rcgen::{CertificateParams, DnType, KeyPair};

fn certificate(groups: &[&str]) -> Vec<u8> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    for group in groups {
        params.distinguished_name.push(DnType::OrganizationName, *group);
    }
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

#[test]
fn only_certificates_of_the_right_groups() {
    assert_eq!(access(None), Access::Nobody);
    assert_eq!(access(Some(b"nonsense")), Access::Stranger);
    assert_eq!(access(Some(&certificate(&["system:nodes"]))), Access::Stranger);
    assert_eq!(access(Some(&certificate(&["system:masters"]))), Access::Friend);
}
