//! Looks for values where they must not be: in every record of the log and in every file of a folder.

use std::path::Path;

use aho_corasick::AhoCorasick;
use sunder_schemas::class::Family;
use sunder_schemas::ids::Partition;
use sunder_schemas::key;
use sunder_schemas::topic::Topic;

use super::Buyer;
use crate::app::App;
use crate::commands::Failure;
use crate::kafka::Kafka;

/// How many records and files hold one of `needles`.
pub(super) async fn everywhere(app: &App, folder: &Path, needles: &[&str]) -> Result<usize, Failure> {
    let search = AhoCorasick::new(needles).map_err(|_| Failure::Failed("too many values to look for".to_owned()))?;
    let (kafka, folder) = (app.kafka.clone(), folder.to_owned());
    let found = tokio::task::spawn_blocking(move || Ok::<usize, Failure>(in_log(&kafka, &search)? + in_files(&folder, &search)?));
    found.await.map_err(|_| Failure::Failed("the search ended early".to_owned()))?
}

fn in_log(kafka: &Kafka, search: &AhoCorasick) -> Result<usize, Failure> {
    let mut found = 0;
    for topic in Topic::all() {
        let name = kafka.topic(topic);
        for partition in (0..kafka.partitions(topic)).map(Partition) {
            let failed = |e: crate::kafka::KafkaError| Failure::of("search the log", &e);
            let range = kafka.whole_blocking(&name, partition).map_err(failed)?;
            let read = kafka.read_blocking(&[range], |record| {
                let hit = search.is_match(record.key.unwrap_or_default()) || search.is_match(record.value.unwrap_or_default());
                found += usize::from(hit);
                Ok(())
            });
            read.map_err(failed)?;
        }
    }
    Ok(found)
}

fn in_files(folder: &Path, search: &AhoCorasick) -> Result<usize, Failure> {
    let failed = |e: std::io::Error| Failure::Failed(format!("search the files: {}", e.kind()));
    let mut found = 0;
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir() {
            found += in_files(&entry.path(), search)?;
        } else {
            found += usize::from(search.is_match(&std::fs::read(entry.path()).map_err(failed)?));
        }
    }
    Ok(found)
}

/// How many sealed blocks of `buyer`'s order the broker still gives.
pub(super) async fn blocks_of(app: &App, buyer: &Buyer) -> Result<usize, Failure> {
    let keys = app.base.keyring.seller(&buyer.seller).await.map_err(|e| Failure::of("keys", &e))?;
    let token = keys.order_token(&buyer.order);
    let prefix = format!("{}|", key::state_key(&buyer.seller, token, None));
    let (kafka, partition) = (app.kafka.clone(), app.kafka.partition_of(&buyer.seller, token));
    let count = tokio::task::spawn_blocking(move || {
        let failed = |e: crate::kafka::KafkaError| Failure::of("read the log", &e);
        let mut live = std::collections::HashMap::new();
        let range = kafka.whole_blocking(&kafka.topic(Topic::Pii(Family::Orders)), partition).map_err(failed)?;
        let read = kafka.read_blocking(&[range], |record| {
            let key = record.key.unwrap_or_default();
            if key.starts_with(prefix.as_bytes()) {
                live.insert(key.to_vec(), record.value.is_some());
            }
            Ok(())
        });
        read.map_err(failed)?;
        Ok::<usize, Failure>(live.values().filter(|is_live| **is_live).count())
    });
    count.await.map_err(|_| Failure::Failed("reading the log ended early".to_owned()))?
}
