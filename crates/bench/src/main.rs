//! Benchmarks: the figures of the issues, ours and the peer's side by side in one run, printed and written to a file.
//!
//! Each command measures one thing against a running cluster (or starts its own), prints a table and writes
//! `bench/<name>.json`. Figures depend on the machine; the targets stand beside them.

mod api;
mod beside;
mod cluster;
mod cores;
mod dns;
mod dns_live;
mod etcd;
mod figures;
mod http2;
mod ingress;
mod layout;
mod memory;
mod pods;
mod policy;
mod rounds;
mod services;
mod traffic;
mod user;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Measure a cluster.
#[derive(Debug, Parser)]
struct Cli {
    /// Where to write the JSON files.
    #[arg(long, default_value = "bench")]
    out: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Time of `skiff start`, memory and CPU of an idle cluster. Starts and deletes a cluster of its own.
    Start {
        /// The skiff binary.
        skiff: PathBuf,
        /// How often to start.
        #[arg(long, default_value_t = 5)]
        runs: usize,
        /// Seconds to watch the idle cluster.
        #[arg(long, default_value_t = 20)]
        idle: u64,
    },
    /// The tutorial as a whole, and commands that only look. Starts and deletes clusters of its own.
    User {
        /// The skiff binary.
        skiff: PathBuf,
        /// Where nginx.tar, httpd.tar and busybox.tar are.
        images: PathBuf,
    },
    /// From the API write to a running Pod with its address, and 100 Pods answering HTTP. Uses the current context.
    Pods,
    /// Cluster DNS with 10,000 Services, beside unbound, asked by dnsperf. Needs no cluster.
    Dns {
        /// The skiff binary.
        skiff: PathBuf,
        /// Seconds of each run.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
    /// What `dns` does in a network namespace of its own.
    #[command(hide = true)]
    DnsInside {
        /// The skiff binary.
        skiff: PathBuf,
        /// Seconds of each run.
        #[arg(long)]
        seconds: u64,
    },
    /// Cluster DNS: from the API write to the answer that says so. Uses the current context.
    DnsLive,
    /// Network policies: building rules, explaining, and what packets pay. Needs no cluster.
    Policy,
    /// Network policies: from the API write to the kernel. Uses the current context.
    PolicyLive,
    /// Creates and watches through the API server, and puts on etcd alone. Uses the current context.
    Api {
        /// Seconds to create for.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
        /// The server's process, for what one core serves (root): it is held to the first core, the load to the second.
        #[arg(long)]
        server: Option<u32>,
    },
    /// The ingress controller beside nginx as a proxy, one worker each. Needs nginx and wrk; no cluster.
    Ingress,
    /// The controller that `ingress` measures.
    #[command(hide = true)]
    IngressServe(ingress::Serve),
    /// The service proxy, its rules and what they cost packets. Uses the current context and network namespaces.
    Services {
        /// How many Services.
        #[arg(long, default_value_t = 10_000)]
        count: u32,
    },
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // The only provider linked; installing fails only when it is there already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match cli.command {
        Command::Start { skiff, runs, idle } => cluster::start(&skiff, runs, idle)?.report(&cli.out, "start"),
        Command::User { skiff, images } => user::measure(&skiff, &images)?.report(&cli.out, "user"),
        Command::Pods => runtime.block_on(pods::measure())?.report(&cli.out, "pods"),
        Command::Ingress => ingress::measure()?.report(&cli.out, "ingress"),
        Command::IngressServe(serve) => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(ingress::serve(serve)),
        Command::Services { count } => {
            runtime.block_on(services::measure(count))?.report(&cli.out, "services")
        }
        Command::Dns { skiff, seconds } => dns::isolated(&cli.out, &skiff, seconds),
        Command::DnsInside { skiff, seconds } => {
            runtime.block_on(dns::measure(&skiff, seconds))?.report(&cli.out, "dns")
        }
        Command::DnsLive => runtime.block_on(dns_live::measure())?.report(&cli.out, "dns-live"),
        Command::Policy => policy::measure()?.report(&cli.out, "policy"),
        Command::PolicyLive => runtime.block_on(policy::live::measure())?.report(&cli.out, "policy-live"),
        Command::Api { seconds, server } => {
            runtime.block_on(api::measure(seconds, server))?.report(&cli.out, "api")
        }
    }
}
