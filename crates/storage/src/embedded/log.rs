//! The file: a `redb` table of live keys and the revision, written in batches, each one synced transaction.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::store::{Event, KeyValue, Revision};
use crate::{Error, Result};

/// key -> create revision (8 bytes LE), mod revision (8 bytes LE), value.
const KEYS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("keys");
/// "revision" -> the newest revision.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// All live state is in memory, so the page cache serves writes alone.
const CACHE_BYTES: usize = 4 << 20;
/// A fresh store begins at 1: clients read revision 0 as "any".
const FIRST_REVISION: Revision = 1;

/// What the file holds.
#[derive(Debug)]
pub struct Contents {
    pub items: Vec<KeyValue>,
    pub revision: Revision,
}

/// The open file. After a failed commit it is closed and opened anew before the next, because redb refuses to go on.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    database: Option<Database>,
}

impl Log {
    /// Opens or creates the file and reads all of it.
    pub fn open(path: &Path) -> Result<(Self, Contents)> {
        let database = open_database(path)?;
        let contents = read_all(&database).map_err(|e| open_error(path, &e))?;
        Ok((Self { path: path.to_owned(), database: Some(database) }, contents))
    }

    /// Writes the events as one transaction and syncs it.
    pub fn commit(&mut self, events: &[Arc<Event>]) -> Result<()> {
        let database = match self.database.take() {
            Some(database) => database,
            None => open_database(&self.path)?,
        };
        write(&database, events).map_err(|e| Error::Io(e.to_string().into()))?;
        self.database = Some(database);
        Ok(())
    }

    /// The revision on disk, read from a freshly opened file: what is true after a commit that failed.
    pub fn durable_revision(&mut self) -> Result<Revision> {
        self.database = None;
        let database = open_database(&self.path)?;
        let revision = read_revision(&database).map_err(|e| open_error(&self.path, &e))?;
        self.database = Some(database);
        Ok(revision)
    }
}

fn open_error(path: &Path, reason: &redb::Error) -> Error {
    Error::Open { path: path.display().to_string().into(), reason: reason.to_string().into() }
}

fn open_database(path: &Path) -> Result<Database> {
    use std::os::unix::fs::OpenOptionsExt;
    let fail =
        |reason: String| Error::Open { path: path.display().to_string().into(), reason: reason.into() };
    // Secrets are in here: the file is made readable by its owner alone before anything is written.
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(path).map_err(|e| fail(e.to_string()))?;
    Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|e| fail(e.to_string()))
}

fn read_revision(database: &Database) -> Result<Revision, redb::Error> {
    let transaction = database.begin_read()?;
    match transaction.open_table(META) {
        Ok(meta) => Ok(meta.get("revision")?.map_or(FIRST_REVISION, |v| v.value())),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(FIRST_REVISION),
        Err(error) => Err(error.into()),
    }
}

fn read_all(database: &Database) -> Result<Contents, redb::Error> {
    let revision = read_revision(database)?;
    let transaction = database.begin_read()?;
    let keys = match transaction.open_table(KEYS) {
        Ok(keys) => keys,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Contents { items: Vec::new(), revision }),
        Err(error) => return Err(error.into()),
    };
    let mut items = Vec::new();
    for entry in keys.iter()? {
        let (key, value) = entry?;
        let decoded = decode(key.value(), value.value());
        items.push(decoded.ok_or_else(|| redb::Error::Corrupted(format!("record of {}", key.value())))?);
    }
    Ok(Contents { items, revision })
}

fn write(database: &Database, events: &[Arc<Event>]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut keys = transaction.open_table(KEYS)?;
        for event in events {
            match &event.current {
                Some(kv) => {
                    let mut slot = keys.insert_reserve(&*kv.key, 16 + kv.value.len())?;
                    encode(kv, slot.as_mut());
                }
                None => {
                    keys.remove(&**event.key())?;
                }
            }
        }
        if let Some(last) = events.last() {
            transaction.open_table(META)?.insert("revision", last.revision)?;
        }
    }
    transaction.commit()?;
    Ok(())
}

fn encode(kv: &KeyValue, to: &mut [u8]) {
    to[..8].copy_from_slice(&kv.create_revision.to_le_bytes());
    to[8..16].copy_from_slice(&kv.mod_revision.to_le_bytes());
    to[16..].copy_from_slice(&kv.value);
}

fn decode(key: &str, record: &[u8]) -> Option<KeyValue> {
    let (create, rest) = record.split_first_chunk::<8>()?;
    let (modified, value) = rest.split_first_chunk::<8>()?;
    Some(KeyValue {
        key: Arc::from(key),
        value: Bytes::copy_from_slice(value),
        create_revision: u64::from_le_bytes(*create),
        mod_revision: u64::from_le_bytes(*modified),
    })
}
