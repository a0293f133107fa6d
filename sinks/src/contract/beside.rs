//! The laws of a store that is built beside the live one, on both stores and both databases.

use sunder_retention::hold::ColdStore as _;

use super::*;
use crate::beside::{Replaceable as _, Side, is_beside};

macro_rules! on_every_store {
    ($($law:ident),+ $(,)?) => {
        $(mod $law {
            use super::*;
            #[tokio::test]
            async fn warehouse_sqlite() {
                if let Some(bench) = Bench::<OfWarehouse>::on("sqlite").await { super::$law(bench).await }
            }
            #[tokio::test]
            async fn warehouse_postgres() {
                if let Some(bench) = Bench::<OfWarehouse>::on("postgres").await { super::$law(bench).await }
            }
            #[tokio::test]
            async fn vault_sqlite() {
                if let Some(bench) = Bench::<OfVault>::on("sqlite").await { super::$law(bench).await }
            }
            #[tokio::test]
            async fn vault_postgres() {
                if let Some(bench) = Bench::<OfVault>::on("postgres").await { super::$law(bench).await }
            }
        })+
    };
}
on_every_store!(
    a_store_built_beside_takes_over_with_its_positions,
    without_a_store_beside_nothing_is_replaced,
    a_switch_that_fails_in_the_middle_replaces_nothing,
    every_forgetting_removes_what_was_left_beside,
);

fn control() -> Control {
    Control { case: "case-1".to_owned(), key: KeyId([0xcc; 16]), block: block(KeyId([0xcc; 16])).into_bytes() }
}

/// A store beside the bench's, with these entities at version 20.
async fn built<F: Fixture>(bench: &Bench<F>, entities: &[u8]) {
    let beside = F::open(&StoreOptions { side: Side::Beside, ..bench.options.clone() }).await.unwrap();
    let changes = entities.iter().zip(0..).map(|(entity, offset)| upsert::<F>(offset, *entity, 20, "built")).collect();
    let next = Offset(entities.len().try_into().unwrap());
    beside.apply(&source::<F>("one"), None, next, changes).await.unwrap();
    beside.close().await;
}

/// Whether a file or table of a copy is there.
async fn is_left<F: Fixture>(bench: &Bench<F>) -> bool {
    match bench.options.url.strip_prefix("sqlite://") {
        Some(path) => {
            let folder = std::path::Path::new(path).parent().unwrap();
            std::fs::read_dir(folder).unwrap().any(|entry| is_beside(&entry.unwrap().path().display().to_string()))
        }
        None => {
            let schemas: Vec<(String,)> = sqlx::query_as("SELECT nspname::text FROM pg_namespace").fetch_all(&bench.sql).await.unwrap();
            schemas.iter().any(|(name,)| is_beside(name))
        }
    }
}

async fn a_store_built_beside_takes_over_with_its_positions<F: Fixture>(bench: Bench<F>) {
    bench.apply(None, 9, vec![upsert::<F>(0, 1, 10, "live"), upsert::<F>(1, 2, 90, "not the log's")]).await.unwrap();
    bench.store.plant(&control()).await.unwrap();
    built(&bench, &[1, 3]).await;
    assert_eq!(bench.rows().await.len(), 2, "the live rows stay until the switch");
    assert!(is_left(&bench).await);
    assert_eq!(bench.store.take_over().await.unwrap(), 2);
    let rows = bench.rows().await;
    assert_eq!(rows.keys().collect::<Vec<_>>(), [&token(1).to_hex(), &token(3).to_hex()]);
    assert!(rows.values().all(|row| *row == (20, "built".to_owned())));
    // A sink that writes meanwhile meets the new position, and nobody else's name holds one.
    assert_eq!(bench.store.position(&source::<F>("one")).await.unwrap(), Some(Offset(2)));
    assert!(matches!(bench.apply(Some(9), 10, Vec::new()).await.unwrap_err(), SinkError::Moved { stored: Some(Offset(2)), .. }));
    let names: Vec<(String,)> = sqlx::query_as("SELECT DISTINCT sink FROM sink_offset").fetch_all(&bench.sql).await.unwrap();
    assert_eq!(names.len(), 1);
    let needles = Needles { controls: vec![control().key], ..Needles::default() };
    let report = bench.store.scan(&needles).await.unwrap();
    assert!(report.controls_found >= 1, "the planted control stays");
    assert!(bench.store.drop_beside().await.unwrap());
    assert!(!bench.store.drop_beside().await.unwrap());
    assert!(!is_left(&bench).await);
    assert_eq!(bench.rows().await, rows);
}

async fn without_a_store_beside_nothing_is_replaced<F: Fixture>(bench: Bench<F>) {
    bench.apply(None, 1, vec![upsert::<F>(0, 1, 10, "live")]).await.unwrap();
    built(&bench, &[2]).await;
    assert!(bench.store.drop_beside().await.unwrap());
    bench.store.take_over().await.unwrap_err();
    assert_eq!(bench.rows().await.into_values().collect::<Vec<_>>(), [(10, "live".to_owned())]);
    assert_eq!(bench.store.position(&source::<F>("one")).await.unwrap(), Some(Offset(1)));
    assert!(!is_left(&bench).await);
    // The connection is as it was.
    built(&bench, &[2]).await;
    assert_eq!(bench.store.take_over().await.unwrap(), 1);
}

async fn a_switch_that_fails_in_the_middle_replaces_nothing<F: Fixture>(bench: Bench<F>) {
    bench.apply(None, 1, vec![upsert::<F>(0, 1, 10, "live")]).await.unwrap();
    built(&bench, &[2]).await;
    // Its last statement, after the rows: two positions of one name.
    let postgres = bench.options.url.starts_with("postgres");
    let trigger = if postgres {
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$; \
         CREATE TRIGGER refuse BEFORE INSERT ON sink_offset FOR EACH ROW EXECUTE FUNCTION refuse()"
    } else {
        "CREATE TRIGGER refuse BEFORE INSERT ON sink_offset BEGIN SELECT RAISE(ABORT, 'no'); END"
    };
    sqlx::raw_sql(trigger).execute(&bench.sql).await.unwrap();
    bench.store.take_over().await.unwrap_err();
    assert_eq!(bench.rows().await.into_values().collect::<Vec<_>>(), [(10, "live".to_owned())]);
    assert_eq!(bench.store.position(&source::<F>("one")).await.unwrap(), Some(Offset(1)));
    let drop = if postgres { "DROP TRIGGER refuse ON sink_offset" } else { "DROP TRIGGER refuse" };
    sqlx::raw_sql(drop).execute(&bench.sql).await.unwrap();
    assert_eq!(bench.store.take_over().await.unwrap(), 1);
    assert_eq!(bench.rows().await.into_values().collect::<Vec<_>>(), [(20, "built".to_owned())]);
}

async fn every_forgetting_removes_what_was_left_beside<F: Fixture>(bench: Bench<F>) {
    for extent in [Extent::Personal, Extent::WithBusinessData] {
        built(&bench, &[1]).await;
        assert!(is_left(&bench).await);
        bench.store.forget(&[subject(1)], extent).await.unwrap();
        assert!(!is_left(&bench).await, "{extent:?}");
    }
}

/// What a law keeps lies in no topic: no replay may touch it, nor take anything for it.
#[tokio::test]
async fn the_cold_store_stays_as_it_is() {
    for database in ["sqlite", "postgres"] {
        let Some(bench) = Bench::<OfVault>::on(database).await else { continue };
        let held = OfVault::record(7, 1, "hold");
        bench.store.hold(std::slice::from_ref(&held)).await.unwrap();
        let beside = OfVault::open(&StoreOptions { side: Side::Beside, ..bench.options.clone() }).await.unwrap();
        beside.apply(&source::<OfVault>("one"), None, Offset(1), vec![upsert::<OfVault>(0, 1, 20, "built")]).await.unwrap();
        beside.hold(&[OfVault::record(8, 1, "never one of ours")]).await.unwrap();
        beside.close().await;
        assert_eq!(bench.store.take_over().await.unwrap(), 1, "{database}");
        assert_eq!(bench.store.held(&seller(), token(7)).await.unwrap(), [held], "{database}");
        assert!(bench.store.held(&seller(), token(8)).await.unwrap().is_empty(), "{database}");
    }
}
