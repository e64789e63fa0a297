//! `standin nginx|httpd|hello-app [PORT]`: a small web server in the place of a well-known one, for machines without a
//! registry. It answers with the pages by which tutorials recognise the real one, and says in them what it is.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;

use crate::serve::{accept, listen};
use crate::small::{own_name, terminated};
use crate::{Error, Result};

/// An image that a stand-in takes the place of.
#[derive(Debug, Clone, Copy)]
pub struct StandIn {
    /// The image's name.
    pub image: &'static str,
    /// What its containers run when they are told nothing.
    pub command: &'static [&'static str],
}

/// All stand-ins, by the images of the networking tutorial. busybox has the toolbox's own programs, and no shell.
pub const STAND_INS: [StandIn; 5] = [
    StandIn { image: "nginx:latest", command: &["standin", "nginx"] },
    StandIn { image: "nginx:1.17", command: &["standin", "nginx"] },
    StandIn { image: "httpd:latest", command: &["standin", "httpd"] },
    StandIn { image: "busybox:latest", command: &[] },
    StandIn { image: "gcr.io/google-samples/hello-app:2.0", command: &["standin", "hello-app"] },
];

/// Whose pages are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    Nginx,
    Httpd,
    HelloApp,
}

impl Server {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "nginx" => Self::Nginx,
            "httpd" => Self::Httpd,
            "hello-app" => Self::HelloApp,
            _ => return None,
        })
    }

    fn port(self) -> u16 {
        if self == Self::HelloApp { 8080 } else { 80 }
    }

    fn page(self, path: &str) -> (StatusCode, &'static str, String) {
        let html = "text/html";
        match (self, path) {
            (Self::HelloApp, _) => {
                let text = format!("Hello, world!\nVersion: 2.0.0\nHostname: {}\n", own_name());
                (StatusCode::OK, "text/plain; charset=utf-8", text)
            }
            (Self::Nginx, "/" | "/index.html") => (StatusCode::OK, html, NGINX.to_owned()),
            (Self::Httpd, "/" | "/index.html") => (StatusCode::OK, html, HTTPD.to_owned()),
            (Self::Nginx, _) => (StatusCode::NOT_FOUND, html, NGINX_404.to_owned()),
            (Self::Httpd, _) => (StatusCode::NOT_FOUND, html, HTTPD_404.to_owned()),
        }
    }
}

const NGINX: &str = "<!DOCTYPE html>
<html>
<head>
<title>Welcome to nginx!</title>
</head>
<body>
<h1>Welcome to nginx!</h1>
<p>This page comes from skiff's small stand-in for nginx, which needs no registry.</p>
</body>
</html>
";
const NGINX_404: &str = "<html>
<head><title>404 Not Found</title></head>
<body>
<center><h1>404 Not Found</h1></center>
<hr><center>skiff's stand-in for nginx</center>
</body>
</html>
";
const HTTPD: &str = "<html><body><h1>It works!</h1></body></html>\n";
const HTTPD_404: &str = "<!DOCTYPE HTML PUBLIC \"-//IETF//DTD HTML 2.0//EN\">
<html><head>
<title>404 Not Found</title>
</head><body>
<h1>Not Found</h1>
<p>The requested URL was not found on this server, skiff's stand-in for httpd.</p>
</body></html>
";

/// Serves until it is told to end.
pub fn run(args: &[String]) -> Result<()> {
    let usage = || Error::Usage("usage: standin nginx|httpd|hello-app [PORT]".into());
    let server = args.first().and_then(|name| Server::named(name)).ok_or_else(usage)?;
    let port = match args.get(1) {
        Some(port) => port.parse().map_err(|_| usage())?,
        None => server.port(),
    };
    crate::block_on(async {
        tokio::spawn(accept(listen(port).await?, move |stream, peer| http(server, stream, peer)));
        println!("skiff's stand-in for {} serves port {port}", args.first().map_or("", String::as_str));
        terminated().await;
        Ok(())
    })
}

async fn http(server: Server, stream: TcpStream, _peer: SocketAddr) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (status, kind, text) = server.page(request.uri().path());
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert("server", hyper::header::HeaderValue::from_static("skiff-standin"));
        headers.insert("content-type", hyper::header::HeaderValue::from_static(kind));
        async move { Ok::<_, Infallible>(response) }
    });
    // A client that breaks off is its own business.
    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_recognised_and_own_up() {
        for (name, path, status, part) in [
            ("nginx", "/", 200, "<title>Welcome to nginx!</title>"),
            ("nginx", "/x", 404, "<head><title>404 Not Found</title></head>"),
            ("httpd", "/", 200, "<html><body><h1>It works!</h1></body></html>"),
            ("httpd", "/x", 404, "<!DOCTYPE HTML PUBLIC"),
            ("hello-app", "/hello", 200, "Hello, world!\nVersion: 2.0.0\nHostname: "),
        ] {
            let page = Server::named(name).map(|server| server.page(path));
            assert!(
                page.is_some_and(|(code, _, text)| code == status && text.contains(part)),
                "{name}{path} should show {part}"
            );
        }
        assert!(
            NGINX.contains("stand-in") && NGINX_404.contains("stand-in") && HTTPD_404.contains("stand-in")
        );
        assert_eq!(Server::named("apache"), None);
        assert!(matches!(run(&["apache".to_owned()]), Err(Error::Usage(_))));
    }

    #[test]
    fn every_stand_in_runs_a_program_that_there_is() {
        for StandIn { image, command } in STAND_INS {
            let server = command.get(1).map(|name| Server::named(name));
            assert!(command.is_empty() || server.is_some_and(|server| server.is_some()), "{image}");
        }
    }
}
