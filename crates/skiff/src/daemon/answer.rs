//! The control socket: what the command line asks of a running cluster.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::{Running, addons, flows, nodes};
use crate::control::{Answer, ImageLine, Reply, Request, Status};
use crate::output::chain;
use crate::ui::size;

/// Opens the socket (0600); a stale one of a dead daemon is replaced.
///
/// # Errors
/// When it cannot be made.
pub fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).context("remove the old control socket");
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .with_context(|| format!("chmod {}", path.display()))?;
    Ok(listener)
}

/// Answers until the daemon ends.
pub async fn serve(listener: UnixListener, running: Running) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let running = running.clone();
                tokio::spawn(async move {
                    if let Err(error) = answer(stream, running).await {
                        tracing::debug!("control socket: {error:#}");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept on the control socket failed");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(stream: UnixStream, running: Running) -> anyhow::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut read = BufReader::new(read);
    read.read_line(&mut line).await.context("read the request")?;
    let request: Request = serde_json::from_str(&line).context("parse the request")?;
    // What is begun is finished though the asker leaves; only who watches is forgotten.
    let watches = matches!(request, Request::Flows(_));
    let (tx, mut rx) = mpsc::unbounded_channel();
    let host = running.host.clone();
    let work = host.spawn(async move {
        let reply = match perform(request, &running, &tx).await {
            Ok(answer) => Reply::Done(answer),
            Err(error) => Reply::Failed(chain(&error)),
        };
        // Whoever asked may have gone.
        let _ = tx.send(reply);
    });
    let mut rest = Vec::new();
    loop {
        let reply = tokio::select! {
            reply = rx.recv() => reply,
            _ = read.read_to_end(&mut rest), if watches => return Ok(()),
        };
        let Some(reply) = reply else { break };
        let line = serde_json::to_string(&reply)? + "\n";
        write.write_all(line.as_bytes()).await.context("write the answer")?;
    }
    work.await.context("the request's task died")
}

async fn perform(
    request: Request,
    running: &Running,
    news: &mpsc::UnboundedSender<Reply>,
) -> anyhow::Result<Answer> {
    let progress = |p: image::Progress| {
        let _ = news.send(Reply::Detail(shown(&p)));
    };
    Ok(match request {
        Request::Status => Answer::Status(status(running).await?),
        Request::Stop => {
            running.stop.cancel();
            Answer::Empty
        }
        Request::Node { name, change } => {
            nodes::change(&running.client, &name, change, news).await?;
            Answer::Empty
        }
        Request::ImageLoad { path } => {
            Answer::Images(lines(running.images.load(image::Source::File(path), &progress).await?))
        }
        Request::ImagePull { reference } => {
            Answer::Images(lines(vec![running.images.pull(&reference, &[], &progress).await?]))
        }
        Request::ImageStandIns => {
            let images = running.images.clone();
            tokio::task::spawn_blocking(move || stand_ins(&images)).await??;
            Answer::Empty
        }
        Request::ImageList => {
            let images = running.images.clone();
            Answer::Images(lines(tokio::task::spawn_blocking(move || images.list()).await??))
        }
        Request::ImageTag { reference, name } => {
            let images = running.images.clone();
            tokio::task::spawn_blocking(move || images.tag(&reference, &name)).await??;
            Answer::Empty
        }
        Request::ImageRemove { reference } => {
            let images: Arc<image::Store> = running.images.clone();
            tokio::task::spawn_blocking(move || images.remove(&reference)).await??;
            Answer::Empty
        }
        Request::Flows(wanted) => {
            flows::tell(&running.flows, &wanted, news).await;
            Answer::Empty
        }
        Request::AddonList => Answer::Addons(addons::list(&running.client).await?),
        Request::AddonEnable { addon } => {
            addons::enable(&running.client, &addon).await?;
            Answer::Empty
        }
        Request::AddonDisable { addon } => {
            addons::disable(&running.client, &addon).await?;
            Answer::Empty
        }
    })
}

fn stand_ins(images: &Arc<image::Store>) -> anyhow::Result<()> {
    for toolbox::StandIn { image, command } in toolbox::STAND_INS {
        if images.get(image).is_none() {
            let builtin = image::Builtin { applets: &toolbox::APPLETS, env: &[], command };
            images.set_builtin(image, builtin).with_context(|| format!("make the stand-in for {image}"))?;
        }
    }
    Ok(())
}

fn shown(progress: &image::Progress) -> String {
    match progress.total_bytes {
        0 => size(progress.bytes),
        total => format!("{} of {}", size(progress.bytes), size(total)),
    }
}

fn lines(images: Vec<image::Image>) -> Vec<ImageLine> {
    let line = |image: &image::Image, reference: &String| ImageLine {
        reference: reference.clone(),
        id: image.id.clone(),
        size: image.size,
        side_loaded: image.side_loaded,
    };
    let mut all: Vec<ImageLine> =
        images.iter().flat_map(|i| i.references.iter().map(move |r| line(i, r))).collect();
    all.sort_by(|a, b| a.reference.cmp(&b.reference));
    all
}

async fn status(running: &Running) -> anyhow::Result<Status> {
    let nodes: Api<Node> = Api::all(running.client.clone());
    let node = nodes.get_opt(&running.node_name).await.context("read the node")?;
    let conditions = node.and_then(|n| n.status).and_then(|s| s.conditions).unwrap_or_default();
    let ready = conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
    let pods: Api<Pod> = Api::all(running.client.clone());
    let pods = pods.list(&kube::api::ListParams::default()).await.context("list the pods")?.items;
    let is_running = |p: &&Pod| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
    Ok(Status {
        daemon: "Running".into(),
        node: if ready { "Ready" } else { "NotReady" }.into(),
        pods_running: pods.iter().filter(is_running).count(),
        pods: pods.len(),
        pid: std::process::id(),
    })
}
