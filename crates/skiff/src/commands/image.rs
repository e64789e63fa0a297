//! `skiff image`: the daemon loads, pulls and removes; saving reads the store, which needs no daemon.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use clap::Subcommand;
use cluster::Profile;

use super::{ask_running, existing, need_root};
use crate::control::{Answer, ImageLine, Request};
use crate::output::Print;
use crate::program::{did_you_mean, is_minikube, on_path};
use crate::ui::{Steps, size, table};

/// Give the cluster images, list, save and remove them.
#[derive(Debug, Subcommand)]
pub enum Image {
    /// Load images from a tar that `docker save`, `podman save` or `skopeo` wrote, or out of Docker or Podman of this
    /// machine by name. They stand in for their registry.
    Load {
        /// The tar, plain or compressed, or the name of an image that Docker or Podman of this machine has.
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Build an image from a Dockerfile with a builder of this machine (docker, podman, buildah), and load it.
    Build {
        /// The directory that is built.
        dir: PathBuf,
        /// The image's name.
        #[arg(short, long)]
        tag: String,
        /// The Dockerfile, if it is not the directory's own.
        #[arg(short, long)]
        file: Option<PathBuf>,
    },
    /// Pull images from their registries.
    Pull {
        /// Such as nginx or ghcr.io/org/app:1.
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// List the images.
    #[command(visible_alias = "list")]
    Ls(Print),
    /// Write an image to a tar that `docker load`, `podman load` and `skiff image load` read.
    Save {
        /// The image.
        image: String,
        /// The tar; - or nothing is standard output.
        file: Option<PathBuf>,
    },
    /// Give an image one more name.
    Tag {
        /// The image.
        image: String,
        /// Its new name.
        name: String,
    },
    /// Remove images; running containers keep theirs.
    #[command(visible_alias = "remove", alias = "unload")]
    Rm {
        /// The images.
        #[arg(required = true)]
        images: Vec<String>,
    },
}

/// Does one of the image commands.
pub fn run(name: &str, command: Image) -> anyhow::Result<()> {
    need_root()?;
    let profile = existing(name)?;
    match command {
        Image::Load { images } => images.iter().try_for_each(|image| load(&profile, image)),
        Image::Build { dir, tag, file } => build(&profile, &dir, &tag, file.as_deref()),
        Image::Pull { images } => images.into_iter().try_for_each(|image| {
            let step = format!("Pulling {image}");
            announce(&request(&profile, &Request::ImagePull { reference: image }, &step)?);
            Ok(())
        }),
        Image::Ls(print) => {
            let images = request(&profile, &Request::ImageList, "")?;
            print.print(&images, |images| listing(images))
        }
        Image::Tag { image, name } => {
            let tag = Request::ImageTag { reference: image.clone(), name };
            request(&profile, &tag, "").map_err(|error| unknown(&profile, &image, error)).map(drop)
        }
        Image::Save { image, file } => save(&profile, &image, file.as_deref()),
        Image::Rm { images } => images.into_iter().try_for_each(|image| {
            request(&profile, &Request::ImageRemove { reference: image.clone() }, "")
                .map_err(|error| unknown(&profile, &image, error))?;
            println!("removed {image}");
            Ok(())
        }),
    }
}

/// Adds the nearest name to what is said about an image that is not there.
fn unknown(profile: &Profile, image: &str, error: anyhow::Error) -> anyhow::Error {
    let known = request(profile, &Request::ImageList, "").unwrap_or_default();
    if known.iter().any(|line| line.reference == image::normalize(image)) {
        return error;
    }
    let wanted = image::normalize(image);
    let near = did_you_mean(&wanted, known.iter().map(|line| line.reference.as_str()));
    anyhow::anyhow!("{error:#}{near}")
}

fn load(profile: &Profile, image: &str) -> anyhow::Result<()> {
    let path = Path::new(image);
    if path.exists() {
        return load_file(profile, path, image);
    }
    let builder = on_path(&["docker", "podman"]).filter(|builder| {
        let mut inspect = Command::new(builder);
        inspect.args(["image", "inspect", image]).stdout(Stdio::null()).stderr(Stdio::null());
        inspect.status().is_ok_and(|status| status.success())
    });
    let Some(builder) = builder else {
        bail!(
            "there is no file {image:?}, and neither Docker nor Podman of this machine has an image of that name"
        );
    };
    load_from(profile, builder, image)
}

fn load_file(profile: &Profile, path: &Path, shown: &str) -> anyhow::Result<()> {
    let path = path.canonicalize().with_context(|| format!("open {}", path.display()))?;
    announce(&request(profile, &Request::ImageLoad { path }, &format!("Loading {shown}"))?);
    Ok(())
}

/// Saves an image out of another engine and loads it.
fn load_from(profile: &Profile, engine: &str, image: &str) -> anyhow::Result<()> {
    let dir = tempdir(profile)?;
    let tar = dir.0.join("image.tar");
    let mut save = Command::new(engine);
    match engine {
        "buildah" => save.args(["push", image]).arg(format!("docker-archive:{}:{image}", tar.display())),
        _ => save.args(["save", "-o"]).arg(&tar).arg(image),
    };
    succeed(&mut save)?;
    load_file(profile, &tar, image)
}

fn build(profile: &Profile, dir: &Path, tag: &str, file: Option<&Path>) -> anyhow::Result<()> {
    let Some(engine) = on_path(&["docker", "podman", "buildah"]) else {
        bail!("building needs docker, podman or buildah on the PATH, for example: apt-get install buildah");
    };
    let mut build = Command::new(engine);
    build.args(["build", "-t", tag]);
    if let Some(file) = file {
        build.arg("-f").arg(file);
    }
    succeed(build.arg(dir))?;
    load_from(profile, engine, tag)
}

fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("run {program}"))?;
    if !status.success() {
        bail!("{program} failed ({status}); what it said stands above");
    }
    Ok(())
}

/// A directory of our own that goes when dropped.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// On the images' own disk, which has room for them.
fn tempdir(profile: &Profile) -> anyhow::Result<Scratch> {
    let dir = profile.state_dir.join(format!("import.{}", std::process::id()));
    cluster::files::make_private_dir(&dir)?;
    Ok(Scratch(dir))
}

fn save(profile: &Profile, image: &str, file: Option<&Path>) -> anyhow::Result<()> {
    let store = image::Store::open(&profile.images(), image::RegistryConfig::default())?;
    let file = file.filter(|file| *file != Path::new("-"));
    let Some(path) = file else {
        let out: OwnedFd = nix::unistd::dup(std::io::stdout()).context("write to standard output")?;
        return Ok(store.save(&[image], BufWriter::new(File::from(out)))?);
    };
    let (owner, caller) = (cluster::Caller::now().owner, path.display());
    let written = File::create(path).with_context(|| format!("write {caller}")).and_then(|file| {
        let mut file = BufWriter::new(file);
        store.save(&[image], &mut file)?;
        file.flush().with_context(|| format!("write {caller}"))
    });
    if written.is_err() {
        // Half an archive is of no use.
        let _ = std::fs::remove_file(path);
    } else if let Some((uid, gid)) = owner {
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).with_context(|| format!("chown {caller}"))?;
    }
    written
}

fn announce(images: &[ImageLine]) {
    for image in images {
        println!("{}", image.reference);
    }
}

fn listing(images: &[ImageLine]) -> String {
    if is_minikube() {
        return images.iter().map(|image| format!("{}\n", image.reference)).collect();
    }
    let short = |id: &str| id.trim_start_matches("sha256:").chars().take(12).collect();
    let row = |i: &ImageLine| vec![i.reference.clone(), short(&i.id), size(i.size)];
    table(&["IMAGE", "ID", "SIZE"], &images.iter().map(row).collect::<Vec<_>>())
}

fn request(profile: &Profile, request: &Request, step: &str) -> anyhow::Result<Vec<ImageLine>> {
    let mut steps = Steps::new();
    if !step.is_empty() {
        steps.begin(step);
    }
    let answer = ask_running(profile, request, |news| steps.news(news));
    match answer {
        Ok(answer) => {
            steps.done();
            Ok(if let Answer::Images(images) = answer { images } else { Vec::new() })
        }
        Err(error) => {
            steps.failed();
            Err(error)
        }
    }
}
