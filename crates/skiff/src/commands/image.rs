//! `skiff image`: the daemon does it, we show it.

use anyhow::{Context, bail};

use super::{existing, flag, need_root};
use crate::cli::Image;
use crate::control::{Answer, ImageLine, Reply, Request, ask};
use crate::ui::{Steps, size, table};

/// Does one of the image commands.
pub fn run(name: &str, command: Image) -> anyhow::Result<()> {
    need_root()?;
    match command {
        Image::Load { file } => {
            let path = file.canonicalize().with_context(|| format!("open {}", file.display()))?;
            let step = format!("Loading {}", file.display());
            announce(&request(name, &Request::ImageLoad { path }, &step)?);
        }
        Image::Pull { image } => {
            let step = format!("Pulling {image}");
            announce(&request(name, &Request::ImagePull { reference: image }, &step)?);
        }
        Image::Ls { output } => {
            let images = request(name, &Request::ImageList, "")?;
            output.print(&images, |images| listing(images))?;
        }
        Image::Rm { image } => {
            request(name, &Request::ImageRemove { reference: image.clone() }, "")?;
            println!("removed {image}");
        }
    }
    Ok(())
}

fn announce(images: &[ImageLine]) {
    for image in images {
        println!("{}", image.reference);
    }
}

fn listing(images: &[ImageLine]) -> String {
    let short = |id: &str| id.trim_start_matches("sha256:").chars().take(12).collect();
    let row = |i: &ImageLine| vec![i.reference.clone(), short(&i.id), size(i.size)];
    table(&["IMAGE", "ID", "SIZE"], &images.iter().map(row).collect::<Vec<_>>())
}

fn request(name: &str, request: &Request, step: &str) -> anyhow::Result<Vec<ImageLine>> {
    let profile = existing(name)?;
    let mut steps = Steps::new();
    if !step.is_empty() {
        steps.begin(step);
    }
    let answer = ask(&profile.control_plane().control_socket(), request, |reply| {
        if let Reply::Detail(text) = reply {
            steps.detail(text);
        }
    });
    match answer {
        Ok(Some(Answer::Images(images))) => {
            steps.done();
            Ok(images)
        }
        Ok(Some(_)) => {
            steps.done();
            Ok(Vec::new())
        }
        Ok(None) => {
            steps.failed();
            bail!("the cluster does not run; start it: sudo skiff start{}", flag(name))
        }
        Err(error) => {
            steps.failed();
            Err(error)
        }
    }
}
