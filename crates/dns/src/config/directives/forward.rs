//! `forward ZONE SERVER...`, with CoreDNS's options.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::super::words::{domain, duration, name, not_understood, number, target, words};
use crate::corefile::{Directive, Error, Line};
use crate::forward::{Policy, Tls, Upstreams};
use crate::name::Domain;

pub(super) struct Asked {
    pub(super) from: Domain,
    pub(super) except: Vec<Domain>,
    pub(super) upstreams: Upstreams,
}

pub(super) fn read(directive: &Directive) -> Result<Asked, Error> {
    let head = &directive.head;
    let ["forward", from, ref to @ ..] = words(head)[..] else { return Err(not_understood(head)) };
    if to.is_empty() {
        return Err(Error::new(head.number, "forward needs a zone and at least one server or file"));
    }
    let targets = to.iter().map(|word| target(word, head.number)).collect::<Result<_, _>>()?;
    let mut asked =
        Asked { from: domain(from, head.number)?, except: Vec::new(), upstreams: Upstreams::new(targets) };
    for line in &directive.body {
        option(&mut asked, line)?;
    }
    Ok(asked)
}

fn option(asked: &mut Asked, line: &Line) -> Result<(), Error> {
    let at = line.number;
    let upstreams = &mut asked.upstreams;
    match words(line)[..] {
        ["except", ref zones @ ..] if !zones.is_empty() => {
            for zone in zones {
                asked.except.push(domain(zone, at)?);
            }
        }
        ["force_tcp"] => upstreams.force_tcp = true,
        // Which is what this server does.
        ["prefer_udp"] => {}
        ["policy", "random"] => upstreams.policy = Policy::Random,
        ["policy", "round_robin"] => upstreams.policy = Policy::RoundRobin,
        ["policy", "sequential"] => upstreams.policy = Policy::Sequential,
        ["max_concurrent", most] => {
            // 0 is CoreDNS's way to say that there is no limit; memory is not without one.
            upstreams.in_flight = match number(most, at, 1_000_000)? {
                0 => 1_000_000,
                most => most as usize,
            };
        }
        ["max_fails", most] => upstreams.health.max_fails = number(most, at, u32::MAX)?,
        ["expire", time] => upstreams.expire = duration(time, at)?,
        ["health_check", time, ref rest @ ..] => {
            upstreams.health.interval = duration(time, at)?.max(std::time::Duration::from_millis(10));
            let mut rest = rest;
            let mut more: &[&str];
            while !rest.is_empty() {
                more = match rest {
                    ["no_rec", more @ ..] => {
                        upstreams.health.recurse = false;
                        more
                    }
                    ["domain", domain, more @ ..] => {
                        upstreams.health.domain = name(domain, at)?;
                        more
                    }
                    _ => return Err(not_understood(line)),
                };
                rest = more;
            }
        }
        ["tls_servername", host] => {
            let named = ServerName::try_from(host.to_owned());
            upstreams.tls.name =
                Some(named.map_err(|_| Error::new(at, format!("{host:?} is not the name of a server")))?);
        }
        ["tls", ref files @ ..] => upstreams.tls.config = tls(files, line)?,
        _ => return Err(not_understood(line)),
    }
    Ok(())
}

/// `tls`, `tls CA`, `tls CERT KEY`, `tls CERT KEY CA`: files that are mounted into the server's Pod.
fn tls(files: &[&str], line: &Line) -> Result<std::sync::Arc<rustls::ClientConfig>, Error> {
    let unread = |file: &str, why: &dyn std::fmt::Display| {
        Error::new(line.number, format!("{file}: {why}; mount the file into the Pods of Deployment coredns"))
    };
    let (own, authority) = match files {
        [] => return Ok(Tls::default().config),
        [authority] => (None, Some(authority)),
        [cert, key] => (Some((cert, key)), None),
        [cert, key, authority] => (Some((cert, key)), Some(authority)),
        _ => return Err(not_understood(line)),
    };
    let read = |file: &str| -> Result<Vec<CertificateDer<'static>>, Error> {
        let all = CertificateDer::pem_file_iter(file).map_err(|why| unread(file, &why))?;
        all.collect::<Result<_, _>>().map_err(|why| unread(file, &why))
    };
    let mut roots = rustls::RootCertStore::empty();
    match authority {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(file) => {
            for certificate in read(file)? {
                roots.add(certificate).map_err(|why| unread(file, &why))?;
            }
        }
    }
    let config = match own {
        None => Tls::speaking(roots).with_no_client_auth(),
        Some((cert, key)) => {
            let chain = read(cert)?;
            let secret = PrivateKeyDer::from_pem_file(key).map_err(|why| unread(key, &why))?;
            let made = Tls::speaking(roots).with_client_auth_cert(chain, secret);
            made.map_err(|why| unread(cert, &why))?
        }
    };
    Ok(std::sync::Arc::new(config))
}
