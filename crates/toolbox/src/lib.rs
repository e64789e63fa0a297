//! The programs of the built-in image `localhost/skiff:latest`: an echo server and the client tools of a first tour.
//!
//! One static binary under several names: the image's `/bin/wget`, `/bin/nslookup`, ... are links to it, and the name
//! it is called by picks the program. Names and output follow busybox, so that what people type keeps working. A
//! static binary has no NSS: [`resolve`] reads `/etc/hosts` and `/etc/resolv.conf` itself, as a Pod's libc would.

mod error;
mod nslookup;
pub mod resolve;
mod serve;
mod small;
mod standin;
mod wget;

use std::process::ExitCode;

pub use error::Error;
pub use standin::{STAND_INS, StandIn};

/// Result of a tool.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The names under which the image links to the binary.
pub const APPLETS: [&str; 9] =
    ["serve", "wget", "nslookup", "sleep", "cat", "hostname", "env", "pause", "true"];

/// Runs the program called `applet` with its arguments (without the name). `None` when there is no such program.
pub fn run(applet: &str, args: &[String]) -> Option<ExitCode> {
    let outcome = match applet {
        "serve" => serve::run(args),
        "standin" => standin::run(args),
        "wget" => wget::run(args),
        "nslookup" => nslookup::run(args),
        "sleep" => small::sleep(args),
        "cat" => small::cat(args),
        "hostname" => small::hostname(),
        "env" => small::env(),
        "pause" => small::pause(),
        "true" => Ok(()),
        _ => return None,
    };
    Some(match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Usage(text)) => {
            eprintln!("{text}");
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("{applet}: {error}");
            ExitCode::FAILURE
        }
    })
}

/// Runs a future on this thread; the tools do one thing at a time.
fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| Error::io("start", e))?.block_on(future)
}
