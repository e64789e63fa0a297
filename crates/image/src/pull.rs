//! Pulling: from a name to an image in the store.
//!
//! The wire (OCI distribution spec: token flow, manifests, blobs) is `oci-client`'s. Here is what surrounds it: which
//! place and which credentials to try in what order, what is worth a retry, fetching and unpacking layers side by side,
//! and saying what went wrong as containerd does.

mod errors;
mod progress;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::try_join_all;
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Semaphore;

use crate::auth::{self, Auth};
use crate::digest::Digest;
use crate::document::{self, ACCEPTED, Descriptor, Document, Manifest};
use crate::error::{Error, IoContext as _, Result};
use crate::index::{LayerRecord, Record};
use crate::layers::{Prepared, install, plan, prepare};
use crate::reference::{full, parse, repo_digest};
use crate::registry::Endpoint;
use crate::store::{Image, Store};

use errors::{Failure, is_transient};
pub(crate) use progress::Tracker;
pub use progress::{Phase, Progress};

/// Layers fetched at a time, as container engines do.
const PARALLEL: usize = 3;
/// Waits before a failed request is repeated.
const RETRIES: [Duration; 3] = [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3)];
/// No honest configuration or manifest is larger; registries refuse manifests over 4 MiB.
const MAX_DOCUMENT: u64 = 16 << 20;

/// One place, one set of credentials.
struct Remote {
    client: Client,
    reference: Reference,
}

/// What a reference led to.
struct Resolved {
    remote: Remote,
    /// Digest of what the name points to: an index or a manifest.
    top: Digest,
    manifest: Manifest,
    bytes: Vec<u8>,
}

impl Store {
    /// Fetches the image of that name and unpacks it; what is here already is not fetched again. An image that was
    /// loaded from an archive or is built in stands in for its registry, which is not asked then.
    ///
    /// `auths` (from imagePullSecrets) are tried before the host's own credentials; without any, anonymously.
    pub async fn pull(
        self: &Arc<Self>,
        reference: &str,
        auths: &[Auth],
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Image> {
        let reference = parse(reference)?;
        let name = full(&reference);
        let tracker = Tracker::new(progress);
        if let Some(image) = self.get(&name).filter(|image| image.side_loaded) {
            tracker.phase(Phase::Done);
            return Ok(image);
        }
        tracker.phase(Phase::Resolving);
        let mut last = None;
        for endpoint in self.registries.endpoints(reference.registry()) {
            match self.pull_from(&endpoint, &reference, auths, &tracker).await {
                Ok(image) => return Ok(image),
                // Where a connection fails, or a mirror has any trouble, the next place may do better.
                Err(Failure::Unreachable(error)) => last = Some(error),
                Err(Failure::Refused(error)) if endpoint.mirror => last = Some(error),
                Err(Failure::Refused(error) | Failure::Local(error)) => return Err(error),
            }
        }
        Err(last.unwrap_or(Error::Cancelled))
    }

    async fn pull_from(
        self: &Arc<Self>,
        endpoint: &Endpoint,
        reference: &Reference,
        auths: &[Auth],
        tracker: &Tracker<'_>,
    ) -> Result<Image, Failure> {
        let mut refused = None;
        for credentials in self.credentials(endpoint, reference, auths).await {
            match resolve(endpoint, reference, &credentials).await {
                Ok(resolved) => return self.fetch(reference, resolved, tracker).await,
                Err(Failure::Refused(error @ Error::Unauthorized { .. })) => refused = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(Failure::Refused(refused.unwrap_or(Error::Cancelled)))
    }

    /// What to show a place, in order. A mirror is never shown what is meant for the registry.
    async fn credentials(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        auths: &[Auth],
    ) -> Vec<RegistryAuth> {
        let host = match (&self.registries.docker_config, endpoint.mirror) {
            (None, _) => Vec::new(),
            (Some(file), mirror) => {
                let registry = if mirror { endpoint.host.clone() } else { reference.registry().to_owned() };
                let file = file.clone();
                tokio::task::spawn_blocking(move || auth::from_host(&file, &registry))
                    .await
                    .unwrap_or_default()
            }
        };
        let target = if endpoint.mirror {
            let (repository, tag) = (reference.repository().to_owned(), "latest".to_owned());
            Reference::with_tag(endpoint.host.clone(), repository, tag)
        } else {
            reference.clone()
        };
        let given: &[Auth] = if endpoint.mirror { &[] } else { auths };
        let found = auth::matching(given, &target).into_iter().chain(auth::matching(&host, &target));
        let mut credentials: Vec<_> = found.map(Auth::to_registry_auth).collect();
        if credentials.is_empty() {
            credentials.push(RegistryAuth::Anonymous);
        }
        credentials
    }

    async fn fetch(
        self: &Arc<Self>,
        reference: &Reference,
        resolved: Resolved,
        tracker: &Tracker<'_>,
    ) -> Result<Image, Failure> {
        let Resolved { remote, top, manifest, bytes } = resolved;
        let name = full(reference);
        let blobs: Vec<Digest> = manifest.layers.iter().map(|layer| layer.digest.clone()).collect();
        let _pins =
            self.pin(blobs.iter().cloned().chain([manifest.config.digest.clone(), Digest::of(&bytes)]));
        if manifest.config.size > MAX_DOCUMENT {
            return Err(Failure::Refused(Error::invalid(name, "configuration is too large")));
        }
        tracker.expect(manifest.layers.iter().map(|layer| layer.size).sum(), manifest.layers.len());
        self.download(&remote, &manifest.config, &name, None).await?;
        let config = self.files.read_blob(&manifest.config.digest)?;
        let layers = plan(&name, &config, &blobs)?;
        let _chain_pins = self.pin(layers.iter().map(|layer| layer.chain.clone()));

        let slots = Semaphore::new(PARALLEL);
        let work = layers.iter().zip(&manifest.layers);
        let work = work
            .map(|(layer, descriptor)| self.fetch_layer(&remote, layer, descriptor, &name, &slots, tracker));
        let prepared = try_join_all(work).await?;

        let record = Record {
            manifest: Descriptor::new(&manifest.media_type, Digest::of(&bytes), bytes.len() as u64),
            references: reference
                .tag()
                .filter(|_| reference.digest().is_none())
                .map(|_| name)
                .into_iter()
                .collect(),
            repo_digests: [repo_digest(reference, &top)].into(),
            size: manifest.layers.iter().map(|layer| layer.size).sum::<u64>() + manifest.config.size,
            layers,
            side_loaded: false,
            builtin: false,
            unsynced: None,
        };
        let image = self.finish(manifest.config.digest, bytes, record, prepared).await?;
        tracker.phase(Phase::Done);
        Ok(image)
    }

    async fn fetch_layer(
        self: &Arc<Self>,
        remote: &Remote,
        layer: &LayerRecord,
        descriptor: &Descriptor,
        name: &str,
        slots: &Semaphore,
        tracker: &Tracker<'_>,
    ) -> Result<Option<Prepared>, Failure> {
        let _slot = slots.acquire().await.map_err(|_| Error::Cancelled)?;
        self.download(remote, descriptor, name, Some(tracker)).await?;
        let (store, layer) = (self.clone(), layer.clone());
        let prepared = blocking(move || prepare(&store.files, &layer)).await?;
        tracker.layer_done();
        Ok(prepared)
    }

    /// Moves layers into place and enters the image into the table.
    pub(crate) async fn finish(
        self: &Arc<Self>,
        id: Digest,
        manifest: Vec<u8>,
        record: Record,
        prepared: Vec<Option<Prepared>>,
    ) -> Result<Image> {
        let store = self.clone();
        blocking(move || {
            store.files.put_bytes(&manifest)?;
            install(&store.files, &record.layers, prepared)?;
            store.commit(id, record)
        })
        .await
    }

    /// Fetches a blob into the store, unless it is there or just being fetched by another pull.
    async fn download(
        &self,
        remote: &Remote,
        blob: &Descriptor,
        name: &str,
        tracker: Option<&Tracker<'_>>,
    ) -> Result<(), Failure> {
        let lock = self.lock_of(&blob.digest);
        let _one_at_a_time = lock.lock().await;
        if self.files.blob(&blob.digest).exists() {
            if let Some(tracker) = tracker {
                tracker.received(blob.size);
            }
            return Ok(());
        }
        let mut retries = RETRIES.iter();
        loop {
            let mut received = 0;
            let error = match self.download_once(remote, blob, &mut received, tracker).await {
                Ok(()) => return Ok(()),
                Err(Attempt::Local(error)) => return Err(Failure::Local(error)),
                Err(Attempt::Remote(error)) => error,
            };
            match retries.next().filter(|_| is_transient(&error)) {
                Some(wait) => {
                    tracing::info!("fetch {} of {name}: {error}; trying again", blob.digest);
                    if let Some(tracker) = tracker {
                        tracker.lost(received);
                    }
                    tokio::time::sleep(*wait).await;
                }
                None => return Err(errors::of_blob(name, &blob.digest, error)),
            }
        }
    }

    async fn download_once(
        &self,
        remote: &Remote,
        blob: &Descriptor,
        received: &mut u64,
        tracker: Option<&Tracker<'_>>,
    ) -> Result<(), Attempt> {
        let mut stream = remote.client.pull_blob_stream(&remote.reference, blob.digest.as_str()).await?;
        let scratch = self.files.scratch();
        let file = tokio::fs::File::create_new(scratch.path()).await.at("create", scratch.path())?;
        let mut file = tokio::io::BufWriter::with_capacity(512 * 1024, file);
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(OciDistributionError::from)?;
            *received += chunk.len() as u64;
            if blob.size != 0 && *received > blob.size {
                let detail = format!("blob {} is longer than the {} bytes announced", blob.digest, blob.size);
                return Err(OciDistributionError::SpecViolationError(detail).into());
            }
            file.write_all(&chunk).await.at("write", scratch.path())?;
            if let Some(tracker) = tracker {
                tracker.received(chunk.len() as u64);
            }
        }
        // The stream has compared the digest before it ended.
        file.flush().await.at("write", scratch.path())?;
        Ok(scratch.keep_as(&self.files.blob(&blob.digest))?)
    }
}

/// One try at a blob.
enum Attempt {
    Remote(OciDistributionError),
    Local(Error),
}

impl From<OciDistributionError> for Attempt {
    fn from(error: OciDistributionError) -> Self {
        Self::Remote(error)
    }
}

impl From<Error> for Attempt {
    fn from(error: Error) -> Self {
        Self::Local(error)
    }
}

/// Signs in and finds the manifest for this machine.
async fn resolve(
    endpoint: &Endpoint,
    reference: &Reference,
    auth: &RegistryAuth,
) -> Result<Resolved, Failure> {
    let name = full(reference);
    let place = endpoint.clone();
    let client = blocking(move || place.client()).await?;
    let mut asked = reference.clone();
    if endpoint.mirror {
        asked.set_mirror_registry(endpoint.host.clone());
    }
    let remote = Remote { client, reference: asked };
    let (bytes, top) = remote.manifest(&remote.reference, auth, &name).await?;
    let (bytes, manifest) = match document::parse(&name, &bytes)? {
        Document::Manifest(manifest) => (bytes, manifest),
        Document::Index(entries) => remote.choose(&entries, auth, &name).await?,
    };
    Ok(Resolved { remote, top, manifest, bytes })
}

impl Remote {
    /// The first entry of an index that this machine can run and that is a manifest.
    async fn choose(
        &self,
        entries: &[Descriptor],
        auth: &RegistryAuth,
        name: &str,
    ) -> Result<(Vec<u8>, Manifest), Failure> {
        for entry in document::runnable(entries) {
            let reference = self.reference.clone_with_digest(entry.digest.to_string());
            let (bytes, _) = self.manifest(&reference, auth, name).await?;
            if let Document::Manifest(manifest) = document::parse(name, &bytes)? {
                return Ok((bytes, manifest));
            }
        }
        let detail = "no match for platform linux/amd64 in manifest".to_owned();
        Err(Failure::Refused(Error::NotFound { reference: name.to_owned(), detail }))
    }

    async fn manifest(
        &self,
        reference: &Reference,
        auth: &RegistryAuth,
        name: &str,
    ) -> Result<(Vec<u8>, Digest), Failure> {
        let mut retries = RETRIES.iter();
        let error = loop {
            let error = match self.manifest_once(reference, auth).await {
                Ok((bytes, _)) if bytes.len() as u64 > MAX_DOCUMENT => {
                    return Err(Failure::Refused(Error::invalid(name, "manifest is too large")));
                }
                Ok((bytes, digest)) => {
                    let digest = Digest::parse(&digest).map_err(|e| Error::invalid(name, e))?;
                    return Ok((bytes, digest));
                }
                Err(error) => error,
            };
            match retries.next().filter(|_| is_transient(&error)) {
                Some(wait) => tokio::time::sleep(*wait).await,
                None => break error,
            }
        };
        Err(errors::of_manifest(name, error))
    }

    async fn manifest_once(
        &self,
        reference: &Reference,
        auth: &RegistryAuth,
    ) -> Result<(Vec<u8>, String), OciDistributionError> {
        // Asked for by itself, because the client hides why signing in failed when it does so on the way.
        self.client.auth(reference, auth, RegistryOperation::Pull).await?;
        let (bytes, digest) = self.client.pull_manifest_raw(reference, auth, &ACCEPTED).await?;
        Ok((bytes.to_vec(), digest))
    }
}

/// Runs blocking work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Error::Cancelled))
}
