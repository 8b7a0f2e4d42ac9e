//! What is on disk: one redb file, one transaction per commit.

use std::path::{Path, PathBuf};

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};

use super::StoreError;

/// `<store>\0<namespace>\0<name>` to the object as JSON.
const OBJECTS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("objects");
/// Small values of the server itself: authority, signing key.
const SETTINGS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("settings");
/// `revision` and `format`.
const NUMBERS: TableDefinition<'static, &str, u64> = TableDefinition::new("numbers");

/// The layout of the tables above; a higher one is refused.
const FORMAT: u64 = 1;

/// Pages held in memory: objects are read from the file at start only.
const CACHE_BYTES: usize = 4 << 20;

/// Opens the database; tests replace it by one that fails on demand.
pub(crate) type Opener = Box<dyn Fn() -> Result<Database, DatabaseError> + Send + Sync>;

/// One row to be written: `None` removes it.
pub(crate) type Row = (String, Option<Vec<u8>>);

/// The open file. After an I/O error redb refuses further work until the file is opened again, so
/// the handle is dropped then and opened anew by the next use.
pub(crate) struct Disk {
    path: PathBuf,
    open: Opener,
    database: Option<Database>,
}

/// Everything read at start.
pub(crate) struct Loaded {
    pub(crate) revision: u64,
    pub(crate) rows: Vec<(String, Vec<u8>)>,
}

impl Disk {
    /// Opens or creates `path`, readable by its owner only.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let file = path.to_owned();
        let open: Opener = Box::new(move || {
            use std::os::unix::fs::OpenOptionsExt;
            // Keys are in it: created private rather than made so afterwards.
            let created = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file);
            if let Err(error) = created
                && error.kind() != std::io::ErrorKind::AlreadyExists
            {
                return Err(error.into());
            }
            redb::Builder::new().set_cache_size(CACHE_BYTES).create(&file)
        });
        Self::with_opener(path, open)
    }

    pub(crate) fn with_opener(path: &Path, open: Opener) -> Result<Self, StoreError> {
        let mut disk = Self { path: path.to_owned(), open, database: None };
        disk.database()?;
        Ok(disk)
    }

    fn database(&mut self) -> Result<&Database, StoreError> {
        if self.database.is_none() {
            let opened = (self.open)().map_err(|error| match error {
                DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
                    StoreError::AlreadyOpen(self.path.clone())
                }
                other => StoreError::Disk(self.path.clone(), Box::new(other.into())),
            })?;
            self.database = Some(opened);
        }
        self.database.as_ref().ok_or_else(|| StoreError::AlreadyOpen(self.path.clone()))
    }

    fn run<T>(&mut self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        let result = work(self.database()?);
        result.map_err(|error| {
            self.database = None;
            StoreError::Disk(self.path.clone(), Box::new(error))
        })
    }

    /// Reads everything, and writes the format of a new file.
    pub(crate) fn load(&mut self) -> Result<Loaded, StoreError> {
        let (loaded, format) = self.run(|database| {
            let transaction = database.begin_write()?;
            let found;
            {
                let mut numbers = transaction.open_table(NUMBERS)?;
                let stored = numbers.get("format")?.map(|v| v.value());
                if stored.is_none() {
                    numbers.insert("format", FORMAT)?;
                }
                let revision = numbers.get("revision")?.map_or(0, |v| v.value());
                let objects = transaction.open_table(OBJECTS)?;
                transaction.open_table(SETTINGS)?;
                let mut rows = Vec::new();
                for row in objects.iter()? {
                    let (key, value) = row?;
                    rows.push((key.value().to_owned(), value.value().to_vec()));
                }
                found = (Loaded { revision, rows }, stored.unwrap_or(FORMAT));
            }
            transaction.commit()?;
            Ok(found)
        })?;
        if format > FORMAT {
            return Err(StoreError::Format { path: self.path.clone(), found: format, known: FORMAT });
        }
        Ok(loaded)
    }

    /// Writes all rows and the revision, or nothing. Durable when it returns.
    pub(crate) fn commit(&mut self, revision: u64, rows: &[Row]) -> Result<(), StoreError> {
        self.run(|database| {
            let transaction = database.begin_write()?;
            {
                let mut objects = transaction.open_table(OBJECTS)?;
                for (key, value) in rows {
                    match value {
                        Some(value) => drop(objects.insert(key.as_str(), value.as_slice())?),
                        None => drop(objects.remove(key.as_str())?),
                    }
                }
                transaction.open_table(NUMBERS)?.insert("revision", revision)?;
            }
            transaction.commit()?;
            Ok(())
        })
    }

    /// A value of the server itself.
    pub(crate) fn setting(&mut self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.run(|database| {
            let transaction = database.begin_read()?;
            let table = transaction.open_table(SETTINGS)?;
            Ok(table.get(name)?.map(|v| v.value().to_vec()))
        })
    }

    /// Keeps a value of the server itself.
    pub(crate) fn set_setting(&mut self, name: &str, value: &[u8]) -> Result<(), StoreError> {
        self.run(|database| {
            let transaction = database.begin_write()?;
            transaction.open_table(SETTINGS)?.insert(name, value)?;
            transaction.commit()?;
            Ok(())
        })
    }
}
