//! `nslookup NAME [SERVER]`, printing what busybox prints.

use std::net::{IpAddr, SocketAddr};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{RData, RecordType};

use crate::resolve::Resolver;
use crate::{Error, Result};

/// Looks a name up and prints server and answers.
pub fn run(args: &[String]) -> Result<()> {
    let name = args.first().ok_or_else(|| Error::Usage("usage: nslookup NAME [SERVER]".into()))?;
    let mut resolver = Resolver::of_pod();
    crate::block_on(async {
        if let Some(server) = args.get(1) {
            let addresses = resolver.addresses(server).await?;
            resolver.servers = addresses.into_iter().map(|a| SocketAddr::new(a, 53)).collect();
        }
        lookup(&resolver, name).await
    })
}

async fn lookup(resolver: &Resolver, name: &str) -> Result<()> {
    let mut shown = false;
    let mut last = String::new();
    let (names, kinds) = match name.parse::<IpAddr>() {
        Ok(address) => (vec![reverse(address)], vec![RecordType::PTR]),
        Err(_) => (resolver.candidates(name), vec![RecordType::A, RecordType::AAAA]),
    };
    for candidate in names {
        let mut found = false;
        for kind in &kinds {
            let (server, answer) = resolver.query(&candidate, *kind).await?;
            if !std::mem::replace(&mut shown, true) {
                println!("Server:\t\t{}\nAddress:\t{server}\n", server.ip());
            }
            for record in &answer.answers {
                match &record.data {
                    RData::A(a) => println!("Name:\t{}\nAddress: {a}", trimmed(&record.name.to_utf8())),
                    RData::AAAA(a) => println!("Name:\t{}\nAddress: {a}", trimmed(&record.name.to_utf8())),
                    RData::CNAME(c) => {
                        println!(
                            "{}\tcanonical name = {}",
                            trimmed(&record.name.to_utf8()),
                            trimmed(&c.to_utf8())
                        );
                    }
                    RData::PTR(p) => println!("{candidate}\tname = {}", trimmed(&p.to_utf8())),
                    _ => continue,
                }
                found = true;
            }
            last = match answer.metadata.response_code {
                ResponseCode::NoError => format!("*** Can't find {candidate}: No answer"),
                code => format!("** server can't find {candidate}: {}", code.to_str().to_uppercase()),
            };
        }
        if found {
            println!();
            return Ok(());
        }
    }
    Err(Error::Dns(last))
}

fn trimmed(name: &str) -> &str {
    name.trim_end_matches('.')
}

fn reverse(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(v6) => {
            let nibbles = v6.octets().into_iter().rev().flat_map(|byte| [byte & 15, byte >> 4]);
            nibbles.map(|n| format!("{n:x}.")).collect::<String>() + "ip6.arpa"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reverse_names() {
        assert_eq!(reverse([10, 96, 0, 10].into()), "10.0.96.10.in-addr.arpa");
        assert!(reverse(IpAddr::V6(1.into())).starts_with("1.0.0."));
    }
}
