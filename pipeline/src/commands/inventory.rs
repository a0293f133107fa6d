//! `sunder inventory`: the copies that are declared beside those that are really there.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use sunder_retention::inventory::{Compared, Copy, Object, compare};
use sunder_retention::keydb::KeyDb;
use sunder_retention::lease;
use sunder_schemas::topic::Topic;
use sunder_sinks::beside::is_beside;
use sunder_sinks::{Vault, Warehouse};

use super::Failure;
use super::topics::show;
use crate::app::{Base, connect_kafka, settings};
use crate::cli::{DONE, NOT_TRUE};
use crate::config::Config;
use crate::kafka::admin::{Entry, Status};
use crate::output::Output;

/// What every SQLite file begins with (sqlite.org/fileformat.html, section 1.3).
const SQLITE_MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Looks into the log, the databases and the folders, and compares.
pub(super) async fn run(config: Config, output: Output) -> Result<u8, Failure> {
    let kafka = connect_kafka(&config).await?;
    let base = Base::open(config, None).await?;
    let config = &base.config;
    let copies = settings::copies(config);
    let (mut found, mut own) = (BTreeSet::new(), BTreeSet::new());
    let topics = kafka.topics_under_prefix().await.map_err(|e| Failure::of("inventory", &e))?;
    found.extend(topics.iter().map(|topic| Object::new("kafka", "topic", topic)));
    own.extend(Topic::all().iter().map(|topic| Object::new("kafka", "topic", &kafka.topic(*topic))));

    let (vault, warehouse) = (base.vault().await?, base.warehouse().await?);
    let objects = [
        ("keys", base.keyring.db().objects().await.map_err(|e| Failure::of("inventory", &e))?, KeyDb::own_objects()),
        ("vault", vault.objects().await.map_err(|e| Failure::of("inventory", &e))?, Vault::own_objects()),
        ("warehouse", warehouse.objects().await.map_err(|e| Failure::of("inventory", &e))?, Warehouse::own_objects()),
    ];
    for (store, there, made) in objects {
        found.extend(there.iter().map(|(kind, name)| Object::new(store, kind, name)));
        own.extend(made.iter().map(|(kind, name)| Object::new(store, kind, name)));
    }
    let files = files(config)?;
    own.extend(files.own);
    found.extend(files.found);
    let replays = lease::live_with_role(base.keyring.db(), lease::REPLAY).await.map_err(|e| Failure::of("inventory", &e))?;
    if replays > 0 {
        // Its copy is known, and no case is certified while it lives; what a dead one left is reported until the next case removes it.
        found.retain(|object| !is_beside(&object.name));
    }

    let compared = compare(&found, &own, &copies);
    let entries = entries(&compared, &copies);
    output.show(&entries, || show(&entries));
    Ok(if entries.iter().any(|entry| entry.status == Status::Fail) { NOT_TRUE } else { DONE })
}

fn entries(compared: &Compared, copies: &[Copy]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for store in ["kafka", "keys", "vault", "warehouse"] {
        let known = compared.known.iter().filter(|object| object.store == store).count();
        entries.push(Entry { name: store.to_owned(), status: Status::Ok, detail: format!("{known} objects as declared"), fix: None });
    }
    entries.extend(compared.missing.iter().filter(|object| object.kind != "file").map(|object| Entry {
        name: object.path(),
        status: Status::Warn,
        detail: format!("{} is declared and not there", object.kind),
        fix: Some("it is made at the next start of `sunder run`".to_owned()),
    }));
    entries.extend(compared.unknown.iter().map(|object| Entry {
        name: object.path(),
        status: Status::Fail,
        detail: format!("{} that nobody declared: no erasure reaches it and no proof reads it", object.kind),
        fix: Some("remove it, or declare it as a [[copy]] with its owner and its life".to_owned()),
    }));
    for (index, copy) in copies.iter().enumerate() {
        let seen: Vec<String> = compared.declared.iter().filter(|(_, of)| *of == index).map(|(object, _)| object.path()).collect();
        let seen = if seen.is_empty() { "not visible from here".to_owned() } else { format!("seen as {}", seen.join(", ")) };
        entries.push(Entry {
            name: format!("copy: {}", copy.what),
            status: Status::Ok,
            detail: format!("{} answers for it; lives {}; {seen}", copy.owner, copy.life),
            fix: None,
        });
    }
    entries
}

/// Files in the folders of the stores and of the root key.
#[derive(Default)]
struct Files {
    own: Vec<Object>,
    found: Vec<Object>,
}

/// Every file beside a store's or the root key's that could be a copy of it: one whose name begins with its name, or any database.
fn files(config: &Config) -> Result<Files, Failure> {
    let sqlite = |url: &str| url.strip_prefix("sqlite://").map(|path| PathBuf::from(path.split('?').next().unwrap_or_default()));
    let places = [
        ("keys", sqlite(&config.keys.database)),
        ("vault", sqlite(&config.vault.url)),
        ("warehouse", sqlite(&config.warehouse.url)),
        ("keys", config.keys.root.strip_prefix("file:").map(PathBuf::from)),
    ];
    let places: Vec<(&str, PathBuf)> = places.into_iter().filter_map(|(store, path)| Some((store, path?))).collect();
    let mut files = Files::default();
    for (store, path) in &places {
        // A database, with what SQLite itself lays beside it while it is open.
        for suffix in ["", "-wal", "-shm", "-journal"] {
            files.own.push(Object::new(store, "file", &format!("{}{suffix}", path.display())));
        }
    }
    let mut seen: BTreeSet<PathBuf> = BTreeSet::new();
    for (store, path) in &places {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let failed =
            |e: std::io::Error| Failure::Failed(format!("inventory: the folder {} cannot be read: {}", folder.display(), e.kind()));
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let file = entry.map_err(failed)?.path();
            let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let is_copy_of = |own: &Path| own.parent() == Some(folder) && name(&file).starts_with(&name(own));
            let of = places.iter().find(|(_, own)| is_copy_of(own)).map(|(store, _)| *store);
            let is_suspect = file.is_file() && (of.is_some() || is_database(&file));
            if is_suspect && seen.insert(file.clone()) {
                files.found.push(Object::new(of.unwrap_or(store), "file", &file.display().to_string()));
            }
        }
    }
    // What two places name is the store's whose file it is.
    files.found.iter_mut().for_each(|object| {
        if let Some(own) = files.own.iter().find(|own| own.name == object.name) {
            object.store.clone_from(&own.store);
        }
    });
    Ok(files)
}

fn is_database(path: &Path) -> bool {
    let mut magic = [0; 16];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *SQLITE_MAGIC
}
