//! `wget [-q] [-O FILE] [-T SECONDS] [--spider] URL`: HTTP only, the options people use in a Pod.

use std::io::Write;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::resolve::Resolver;
use crate::{Error, Result};

/// Fetch a file by HTTP.
#[derive(Debug, Parser)]
#[command(name = "wget", no_binary_name = true)]
struct Options {
    /// Say nothing but the document.
    #[arg(short)]
    quiet: bool,
    /// Write the document there, `-` for standard output.
    #[arg(short = 'O', long = "output-document", default_value = "-")]
    output: String,
    /// Give up after so many seconds.
    #[arg(short = 'T', long, default_value_t = 60)]
    timeout: u64,
    /// Ask only whether it is there.
    #[arg(long)]
    spider: bool,
    /// http://HOST[:PORT][/PATH]; the scheme may be left out.
    url: String,
}

/// Fetches and prints.
pub fn run(args: &[String]) -> Result<()> {
    let options = Options::try_parse_from(args).map_err(|e| Error::Usage(e.to_string()))?;
    let timeout = Duration::from_secs(options.timeout.max(1));
    crate::block_on(async {
        tokio::time::timeout(timeout, fetch(&options)).await.map_err(|_| Error::Timeout)?
    })
}

async fn fetch(options: &Options) -> Result<()> {
    let url =
        if options.url.contains("://") { options.url.clone() } else { format!("http://{}", options.url) };
    let usage = |e: &dyn std::fmt::Display| Error::Usage(format!("bad url '{url}': {e}"));
    let uri: hyper::Uri = url.parse().map_err(|e: hyper::http::uri::InvalidUri| usage(&e))?;
    if uri.scheme_str() != Some("http") {
        return Err(usage(&"only http is spoken here"));
    }
    let host = uri.host().ok_or_else(|| usage(&"no host"))?.trim_matches(['[', ']']);
    let port = uri.port_u16().unwrap_or(80);
    let address = (Resolver::of_pod().addresses(host).await?[0], port);
    if !options.quiet {
        eprintln!("Connecting to {host} ({}:{port})", address.0);
    }
    let connect = |e| Error::io(format!("can't connect to remote host ({})", address.0), e);
    let stream = TcpStream::connect(address).await.map_err(connect)?;
    let broken = |e: hyper::Error| Error::Http(e.to_string());
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let driver = tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let authority = uri.authority().map_or(host, |a| a.as_str());
    let request = Request::builder()
        .method(if options.spider { "HEAD" } else { "GET" })
        .uri(path)
        .header("host", authority)
        .header("user-agent", "skiff-wget")
        .body(Empty::<Bytes>::new())
        .map_err(|e| usage(&e))?;
    let mut response = sender.send_request(request).await.map_err(broken)?;
    if !response.status().is_success() {
        return Err(Error::Http(format!("HTTP/1.1 {}", response.status())));
    }
    if options.spider {
        eprintln!("remote file exists");
        return Ok(());
    }
    let failed = |e| Error::io(&options.output, e);
    let mut out: Box<dyn Write> = match options.output.as_str() {
        "-" => Box::new(std::io::stdout()),
        path => Box::new(std::fs::File::create(path).map_err(failed)?),
    };
    while let Some(frame) = response.body_mut().frame().await {
        if let Ok(data) = frame.map_err(broken)?.into_data() {
            out.write_all(&data).map_err(failed)?;
        }
    }
    drop(sender);
    driver.abort();
    out.flush().map_err(failed)
}
