//! The OCI runtime behind one small trait whose contract is the runtime spec; `libcontainer` implements it.
//!
//! Both calls run in a job (a forked child of the shim), so the library may block, change folders and leak as it likes.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::{Process, Spec};
use libcontainer::syscall::syscall::SyscallType;

use super::init::Init;

/// How a process' standard streams are wired.
pub enum Streams {
    /// Descriptors for 0, 1 and 2.
    Pipes([OwnedFd; 3]),
    /// A terminal of the container, whose master goes to this socket.
    Console(PathBuf),
}

impl Streams {
    /// The descriptors that a job must keep open.
    pub fn descriptors(&self) -> Vec<RawFd> {
        match self {
            Self::Pipes(fds) => fds.iter().map(AsRawFd::as_raw_fd).collect(),
            Self::Console(_) => Vec::new(),
        }
    }
}

/// Creates containers and further processes in them. Errors are whole sentences for people.
pub trait OciRuntime {
    /// Creates a container whose process waits for [`OciRuntime::start`]; returns its pid.
    fn create(&self, id: &str, spec: &Spec, streams: Streams, init: Init) -> Result<i32, String>;
    /// Lets the process `exec`.
    fn start(&self, id: &str) -> Result<(), String>;
    /// Runs a further process in a running container; returns its pid once it has become the command.
    fn exec(&self, id: &str, process: &Process, streams: Streams, init: Init) -> Result<i32, String>;
    /// Forgets a container that has ended.
    fn forget(&self, id: &str);
}

/// youki's library.
#[derive(Debug)]
pub struct Libcontainer {
    state: PathBuf,
    bundles: PathBuf,
    further: PathBuf,
}

impl Libcontainer {
    /// Keeps its state below `run_dir`.
    pub fn new(run_dir: &Path) -> std::io::Result<Self> {
        let below = |name: &str| -> std::io::Result<PathBuf> {
            let folder = run_dir.join(name);
            fs::create_dir_all(&folder)?;
            Ok(folder)
        };
        Ok(Self { state: below("state")?, bundles: below("bundles")?, further: below("exec")? })
    }

    fn exec_in(
        &self,
        root: &Path,
        id: &str,
        process: &Process,
        streams: Streams,
        init: Init,
    ) -> Result<i32, String> {
        let folder = root.join(id);
        fs::create_dir_all(&folder).map_err(chain)?;
        fs::copy(self.state.join(id).join("state.json"), folder.join("state.json")).map_err(chain)?;
        let file = root.join("process.json");
        fs::write(&file, serde_json::to_vec(process).map_err(chain)?).map_err(chain)?;
        builder(root, id, streams, init)?
            .as_tenant()
            .with_process(Some(&file))
            .with_detach(true)
            .as_sibling(true)
            .build()
            .map(|pid| pid.as_raw())
            .map_err(chain)
    }
}

fn builder(root: &Path, id: &str, streams: Streams, init: Init) -> Result<ContainerBuilder, String> {
    let builder = ContainerBuilder::new(id.to_owned(), SyscallType::Linux)
        .with_root_path(root)
        .map_err(chain)?
        .with_executor(init);
    Ok(match streams {
        Streams::Pipes([stdin, stdout, stderr]) => {
            builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr)
        }
        Streams::Console(socket) => builder.with_console_socket(Some(socket)),
    })
}

impl OciRuntime for Libcontainer {
    fn create(&self, id: &str, spec: &Spec, streams: Streams, init: Init) -> Result<i32, String> {
        let bundle = self.bundles.join(id);
        fs::create_dir_all(&bundle).map_err(chain)?;
        spec.save(bundle.join("config.json")).map_err(chain)?;
        let container = builder(&self.state, id, streams, init)?
            .validate_id()
            .map_err(chain)?
            .as_init(&bundle)
            .with_systemd(false)
            .with_detach(true)
            .as_sibling(true)
            .build()
            .map_err(chain)?;
        container.pid().map(|pid| pid.as_raw()).ok_or_else(|| "the container has no process".to_owned())
    }

    fn start(&self, id: &str) -> Result<(), String> {
        Container::load(self.state.join(id)).and_then(|mut container| container.start()).map_err(chain)
    }

    fn exec(&self, id: &str, process: &Process, streams: Streams, init: Init) -> Result<i32, String> {
        // The library takes a process by file only and leaves a socket in its folder at every call: this job works in
        // a folder of its own, a copy of the container's state, and takes it away.
        let root = self.further.join(std::process::id().to_string());
        let done = self.exec_in(&root, id, process, streams, init);
        let _ = fs::remove_dir_all(&root);
        done
    }

    fn forget(&self, id: &str) {
        for folder in [self.state.join(id), self.bundles.join(id)] {
            if let Err(error) = fs::remove_dir_all(&folder)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                super::report(&format!("remove {}: {error}", folder.display()));
            }
        }
    }
}

/// An error with all its causes.
fn chain(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            text.push_str(": ");
            text.push_str(&next_text);
        }
        cause = next.source();
    }
    text
}
