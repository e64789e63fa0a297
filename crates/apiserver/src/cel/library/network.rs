//! Addresses and ranges: `cidr('10.0.0.0/8').containsIP('10.1.2.3')`.

use std::net::IpAddr;

use cel::common::types::STRING_TYPE;
use cel::objects::Opaque;
use cel::{DeclarationError, Env, Value};
use ipnet::IpNet;

use super::{functions, opaque, text_of, unwrap, wrap};
use crate::cel::convert::string;

const IP: &str = "net.IP";
const CIDR: &str = "net.CIDR";

#[derive(Debug, PartialEq, Eq)]
struct Ip(IpAddr);

#[derive(Debug, PartialEq, Eq)]
struct Cidr(IpNet);

impl Opaque for Ip {
    fn runtime_type_name(&self) -> &str {
        IP
    }
}

impl Opaque for Cidr {
    fn runtime_type_name(&self) -> &str {
        CIDR
    }
}

/// Adds the functions.
pub fn add(env: &mut Env) -> Result<(), DeclarationError> {
    env.add_type(opaque(IP))?;
    env.add_type(opaque(CIDR))?;
    functions! { env,
        "ip", (STRING_TYPE) => |a| parse_ip(&a[0]).map(|ip| wrap(Ip(ip)));
        "isIP", (STRING_TYPE) => |a| Ok(Value::Bool(parse_ip(&a[0]).is_ok()));
        "ip.isCanonical", (STRING_TYPE) => |a| Ok(Value::Bool(parse_ip(&a[0])?.to_string() == text_of(&a[0])?));
        "string", (opaque(IP)) => |a| Ok(string(&ip(&a[0])?.to_string()));
        "family" on opaque(IP), () => |a| Ok(Value::Int(if ip(&a[0])?.is_ipv4() { 4 } else { 6 }));
        "isUnspecified" on opaque(IP), () => |a| Ok(Value::Bool(ip(&a[0])?.is_unspecified()));
        "isLoopback" on opaque(IP), () => |a| Ok(Value::Bool(ip(&a[0])?.is_loopback()));
        "isLinkLocalMulticast" on opaque(IP), () => |a| Ok(Value::Bool(link_local_multicast(ip(&a[0])?)));
        "isLinkLocalUnicast" on opaque(IP), () => |a| Ok(Value::Bool(link_local(ip(&a[0])?)));
        "isGlobalUnicast" on opaque(IP), () => |a| Ok(Value::Bool(global(ip(&a[0])?)));
        "cidr", (STRING_TYPE) => |a| parse_cidr(&a[0]).map(|c| wrap(Cidr(c)));
        "isCIDR", (STRING_TYPE) => |a| Ok(Value::Bool(parse_cidr(&a[0]).is_ok()));
        "string", (opaque(CIDR)) => |a| Ok(string(&cidr(&a[0])?.to_string()));
        "containsIP" on opaque(CIDR), (STRING_TYPE) => |a| Ok(Value::Bool(cidr(&a[0])?.contains(&parse_ip(&a[1])?)));
        "containsIP" on opaque(CIDR), (opaque(IP)) => |a| Ok(Value::Bool(cidr(&a[0])?.contains(&ip(&a[1])?)));
        "containsCIDR" on opaque(CIDR), (STRING_TYPE) => |a| Ok(Value::Bool(cidr(&a[0])?.contains(&parse_cidr(&a[1])?)));
        "containsCIDR" on opaque(CIDR), (opaque(CIDR)) => |a| Ok(Value::Bool(cidr(&a[0])?.contains(&cidr(&a[1])?)));
        "ip" on opaque(CIDR), () => |a| Ok(wrap(Ip(cidr(&a[0])?.addr())));
        "masked" on opaque(CIDR), () => |a| Ok(wrap(Cidr(cidr(&a[0])?.trunc())));
        "prefixLength" on opaque(CIDR), () => |a| Ok(Value::Int(i64::from(cidr(&a[0])?.prefix_len())));
    }
    Ok(())
}

fn parse_ip(value: &Value) -> Result<IpAddr, String> {
    let text = text_of(value)?;
    text.parse().map_err(|_| format!("IP Address {text:?} parse error during conversion from string"))
}

fn parse_cidr(value: &Value) -> Result<IpNet, String> {
    let text = text_of(value)?;
    text.parse().map_err(|_| format!("network address parse error during conversion from string: {text:?}"))
}

fn ip(value: &Value) -> Result<IpAddr, String> {
    unwrap::<Ip>(value).map(|ip| ip.0)
}

fn cidr(value: &Value) -> Result<IpNet, String> {
    unwrap::<Cidr>(value).map(|cidr| cidr.0)
}

fn link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn link_local_multicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
    }
}

fn global(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local(ip) || broadcast)
}
