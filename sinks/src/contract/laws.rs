//! The laws, each once; the macro runs them on the four combinations.

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use super::*;

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
    a_batch_applies_once,
    a_lower_version_never_replaces_a_higher_one,
    a_tombstone_removes_and_older_batches_are_refused,
    another_incarnation_asks_for_a_rebuild,
    a_batch_that_fails_changes_nothing,
    rows_without_attribution_are_refused_by_the_database,
    a_batch_of_five_thousand_is_one_transaction,
    caught_up_means_past_every_mark,
    forget_removes_rows_and_a_scan_finds_only_controls,
    any_sequence_ends_in_the_models_rows,
    opening_again_keeps_rows_and_positions,
);

async fn a_batch_applies_once<F: Fixture>(bench: Bench<F>) {
    assert_eq!(bench.store.position(&source::<F>("one")).await.unwrap(), None);
    let batch = || vec![upsert::<F>(0, 1, 10, "a"), upsert::<F>(4, 2, 10, "b")];
    let applied = bench.apply(None, 5, batch()).await.unwrap();
    assert_eq!((applied.rows_written, applied.outcomes.total(), applied.outcomes.stored), (2, 2, 2));
    assert_eq!(bench.store.position(&source::<F>("one")).await.unwrap(), Some(Offset(5)));
    let before = bench.rows().await;
    for expected in [None, Some(0)] {
        let error = bench.apply(expected, 5, batch()).await.unwrap_err();
        assert!(matches!(error, SinkError::Moved { stored: Some(Offset(5)), .. }), "{error}");
    }
    // The same records again from the new position, as after a lost answer, change nothing either.
    bench.apply(Some(5), 10, vec![upsert::<F>(5, 1, 10, "a"), upsert::<F>(9, 2, 10, "b")]).await.unwrap();
    assert_eq!(bench.rows().await, before);
}

async fn a_lower_version_never_replaces_a_higher_one<F: Fixture>(bench: Bench<F>) {
    bench.apply(None, 1, vec![upsert::<F>(0, 1, 10, "new")]).await.unwrap();
    let applied = bench.apply(Some(1), 2, vec![upsert::<F>(1, 1, 9, "old")]).await.unwrap();
    assert_eq!(applied.outcomes.filtered[FilterReason::Stale as usize], 1);
    assert_eq!((applied.outcomes.stored, applied.outcomes.total()), (0, 1));
    // In one batch the higher version wins as well, wherever it stands.
    bench.apply(Some(2), 6, vec![upsert::<F>(2, 2, 5, "x"), upsert::<F>(3, 2, 7, "y"), upsert::<F>(4, 2, 6, "z")]).await.unwrap();
    let rows = bench.rows().await;
    assert_eq!(rows[&token(1).to_hex()], (10, "new".to_owned()));
    assert_eq!(rows[&token(2).to_hex()], (7, "y".to_owned()));
}

async fn a_tombstone_removes_and_older_batches_are_refused<F: Fixture>(bench: Bench<F>) {
    bench.apply(None, 2, vec![upsert::<F>(0, 1, 10, "a"), upsert::<F>(1, 2, 10, "b")]).await.unwrap();
    let own = Change::Delete { offset: Offset(3), key: b"~hb".to_vec() };
    let applied = bench.apply(Some(2), 4, vec![delete::<F>(2, 1), own]).await.unwrap();
    assert_eq!((applied.rows_deleted, applied.outcomes.tombstoned), (1, 1));
    assert_eq!(applied.outcomes.filtered[FilterReason::Own as usize], 1);
    assert_eq!(bench.rows().await.len(), 1);
    // An older replay cannot bring the row back: its offsets lie below the position.
    let error = bench.apply(Some(4), 5, vec![upsert::<F>(0, 1, 10, "a")]).await.unwrap_err();
    assert!(matches!(error, SinkError::Batch { .. }), "{error}");
    let error = bench.apply(None, 2, vec![upsert::<F>(0, 1, 10, "a")]).await.unwrap_err();
    assert!(matches!(error, SinkError::Moved { .. }), "{error}");
    assert_eq!(bench.rows().await.len(), 1);
    // What comes after a tombstone in the log is not compared with what stood before it.
    bench.apply(Some(4), 7, vec![upsert::<F>(4, 2, 11, "c"), delete::<F>(5, 2), upsert::<F>(6, 2, 3, "d")]).await.unwrap();
    assert_eq!(bench.rows().await[&token(2).to_hex()], (3, "d".to_owned()));
}

async fn another_incarnation_asks_for_a_rebuild<F: Fixture>(bench: Bench<F>) {
    bench.apply(None, 2, vec![upsert::<F>(0, 1, 10, "a"), upsert::<F>(1, 2, 10, "b")]).await.unwrap();
    let error = bench.store.position(&source::<F>("two")).await.unwrap_err();
    assert!(matches!(&error, SinkError::Rebuild { held, .. } if held == "one"), "{error}");
    assert_eq!(bench.store.rebuild(F::TOPIC, "two").await.unwrap(), 2);
    assert_eq!(bench.store.rebuild(F::TOPIC, "two").await.unwrap(), 0);
    assert!(bench.rows().await.is_empty());
    assert_eq!(bench.store.position(&source::<F>("two")).await.unwrap(), None);
    bench.store.apply(&source::<F>("two"), None, Offset(1), vec![upsert::<F>(0, 1, 2, "again")]).await.unwrap();
    assert_eq!(bench.rows().await[&token(1).to_hex()], (2, "again".to_owned()));
}

async fn a_batch_that_fails_changes_nothing<F: Fixture>(bench: Bench<F>) {
    bench.apply(None, 1, vec![upsert::<F>(0, 1, 10, "a")]).await.unwrap();
    // A crash between the rows and the position: the database refuses in the middle of the batch.
    sqlx::query("ALTER TABLE sink_offset RENAME TO sink_offset_away").execute(&bench.sql).await.unwrap();
    let error = bench.apply(Some(1), 2, vec![upsert::<F>(1, 2, 10, "b")]).await.unwrap_err();
    assert_eq!(error.retry(), Retry::Never, "{error}");
    sqlx::query("ALTER TABLE sink_offset_away RENAME TO sink_offset").execute(&bench.sql).await.unwrap();
    let away = format!("ALTER TABLE {} RENAME TO away", F::TABLE);
    let back = format!("ALTER TABLE away RENAME TO {}", F::TABLE);
    sqlx::query("DROP VIEW IF EXISTS freshness").execute(&bench.sql).await.unwrap();
    sqlx::query(AssertSqlSafe(away)).execute(&bench.sql).await.unwrap();
    bench.apply(Some(1), 2, vec![upsert::<F>(1, 2, 10, "b")]).await.unwrap_err();
    sqlx::query(AssertSqlSafe(back)).execute(&bench.sql).await.unwrap();
    assert_eq!(bench.store.position(&source::<F>("one")).await.unwrap(), Some(Offset(1)));
    assert_eq!(bench.rows().await.len(), 1);
    bench.apply(Some(1), 2, vec![upsert::<F>(1, 2, 10, "b")]).await.unwrap();
    assert_eq!(bench.rows().await.len(), 2);
}

async fn rows_without_attribution_are_refused_by_the_database<F: Fixture>(bench: Bench<F>) {
    bench.apply(None, 1, vec![upsert::<F>(0, 1, 10, "a")]).await.unwrap();
    for column in crate::tables::ATTRIBUTION {
        let sql = format!("UPDATE {} SET {column} = NULL", F::TABLE);
        sqlx::query(AssertSqlSafe(sql)).execute(&bench.sql).await.unwrap_err();
    }
}

async fn a_batch_of_five_thousand_is_one_transaction<F: Fixture>(bench: Bench<F>) {
    let changes: Vec<_> = (0..5_000)
        .map(|n| upsert::<F>(n, u8::try_from(n % 250).unwrap(), n, "many"))
        .chain(std::iter::once(delete::<F>(5_000, 249)))
        .collect();
    let applied = bench.apply(None, 5_001, changes).await.unwrap();
    assert_eq!(applied.outcomes.total(), 5_001);
    let rows = bench.rows().await;
    assert_eq!((rows.len(), applied.rows_written), (249, 249));
    assert_eq!(rows[&token(0).to_hex()].0, 4_750);
}

async fn caught_up_means_past_every_mark<F: Fixture>(bench: Bench<F>) {
    bench.apply(None, 5, vec![upsert::<F>(0, 1, 10, "a")]).await.unwrap();
    let mark = |incarnation: &str, partition, offset| Mark {
        topic: F::TOPIC.to_owned(),
        incarnation: incarnation.to_owned(),
        partition: Partition(partition),
        offset: Offset(offset),
    };
    let foreign = Mark { topic: "sp.raw.orders.v1".to_owned(), ..mark("one", 3, 999) };
    assert!(bench.store.caught_up(&[mark("one", 3, 4), foreign]).await.unwrap());
    assert!(!bench.store.caught_up(&[mark("one", 3, 5)]).await.unwrap());
    assert!(!bench.store.caught_up(&[mark("two", 3, 4)]).await.unwrap());
    assert!(!bench.store.caught_up(&[mark("one", 2, 0)]).await.unwrap());
}

async fn forget_removes_rows_and_a_scan_finds_only_controls<F: Fixture>(bench: Bench<F>) {
    // A thousand other rows around, so that pages stay in use after the deletion.
    let others = (0..100).map(|n| upsert::<F>(n, u8::try_from(n).unwrap() + 100, 1, "other"));
    bench.apply(None, 101, others.chain([upsert::<F>(100, 2, 10, "kept")]).collect()).await.unwrap();
    let leak: Vec<Change<F::Record>> = vec![upsert::<F>(101, 1, 10, &key_of(1).to_hex())];
    bench.apply(Some(101), 102, leak).await.unwrap();
    let control = Control { case: "case-1".to_owned(), key: KeyId([0xcc; 16]), block: block(KeyId([0xcc; 16])).into_bytes() };
    bench.store.plant(&control).await.unwrap();
    bench.store.plant(&control).await.unwrap();
    let needles = Needles { keys: vec![key_of(1)], controls: vec![control.key], ..Needles::default() };

    let report = bench.store.scan(&needles).await.unwrap();
    assert!(report.found.iter().any(|found| found.key == key_of(1) && found.place.ends_with(F::TABLE)), "{:?}", report.found);
    assert!(report.found.iter().any(|found| found.place.contains("file")), "the leak is in the bytes too");
    assert_eq!((report.controls_planted, report.controls_found), (2, 2), "in rows and in bytes");

    assert!(bench.store.forget(&[subject(1)], Extent::WithBusinessData).await.unwrap() > 0);
    assert_eq!(bench.store.forget(&[subject(1)], Extent::WithBusinessData).await.unwrap(), 0);
    assert_eq!(bench.rows().await.len(), 101);
    let report = bench.store.scan(&needles).await.unwrap();
    assert!(report.found.is_empty(), "{:?}", report.found);
    assert_eq!((report.controls_planted, report.controls_found), (2, 2));
    assert!(report.places.iter().any(|place| place.name.contains("file")), "{:?}", report.places);

    bench.store.unplant("case-1").await.unwrap();
    let report = bench.store.scan(&needles).await.unwrap();
    assert!(report.controls_found < report.controls_planted, "a scan without its control is void");
}

async fn opening_again_keeps_rows_and_positions<F: Fixture>(bench: Bench<F>) {
    bench.apply(None, 5, vec![upsert::<F>(0, 1, 10, "a")]).await.unwrap();
    let again = F::open(&bench.options).await.unwrap();
    assert_eq!(again.position(&source::<F>("one")).await.unwrap(), Some(Offset(5)));
    again.apply(&source::<F>("one"), Some(Offset(5)), Offset(6), vec![upsert::<F>(5, 2, 10, "b")]).await.unwrap();
    assert_eq!(bench.rows().await.len(), 2);
}

/// One change: entity, version; `None` is a tombstone.
type Op = (u8, Option<i64>);

async fn any_sequence_ends_in_the_models_rows<F: Fixture>(bench: Bench<F>) {
    let ops = proptest::collection::vec(proptest::collection::vec((0u8..6, proptest::option::weighted(0.8, 0i64..8)), 0..12), 1..6);
    let mut runner = TestRunner::deterministic();
    let (mut position, mut offset) = (None, 0i64);
    let mut model: BTreeMap<String, (i64, String)> = BTreeMap::new();
    for _ in 0..25 {
        let batches: Vec<Vec<Op>> = ops.new_tree(&mut runner).unwrap().current();
        for batch in batches {
            let mut changes = Vec::new();
            for (entity, version) in batch {
                let held = token(entity).to_hex();
                match version {
                    None => {
                        model.remove(&held);
                        changes.push(delete::<F>(offset, entity));
                    }
                    Some(version) => {
                        let tag = format!("o{offset}");
                        if model.get(&held).is_none_or(|(stored, _)| *stored <= version) {
                            model.insert(held, (version, tag.clone()));
                        }
                        changes.push(upsert::<F>(offset, entity, version, &tag));
                    }
                }
                offset += 2;
            }
            let given = changes.len() as u64;
            let applied = bench.apply(position, offset, changes).await.unwrap();
            assert_eq!(applied.outcomes.total(), given);
            position = Some(offset);
        }
        assert_eq!(bench.rows().await, model);
    }
}

#[tokio::test]
async fn a_block_of_a_destroyed_key_is_not_stored() {
    let bench = Bench::<OfVault>::on("sqlite").await.unwrap();
    let mut record = OfVault::record(1, 10, "a");
    (record.key_id, record.block) = (DESTROYED, block(DESTROYED));
    let change = Change::Upsert { offset: Offset(0), record };
    let applied = bench.apply(None, 2, vec![change, upsert::<OfVault>(1, 2, 10, "b")]).await.unwrap();
    assert_eq!(applied.outcomes.filtered[FilterReason::Erased as usize], 1);
    assert_eq!(applied.outcomes.total(), 2);
    assert_eq!(bench.rows().await.len(), 1);
}

#[tokio::test]
async fn a_row_of_a_withheld_entity_is_not_stored_and_its_tombstone_still_counts() {
    for database in ["sqlite", "postgres"] {
        let Some(bench) = Bench::<OfWarehouse>::on(database).await else { continue };
        bench.apply(None, 1, vec![upsert::<OfWarehouse>(0, 1, 10, "before it was erased")]).await.unwrap();
        let gated = OfWarehouse::open(&bench.options).await.unwrap().gated(Arc::new(|entity| entity == token(1)));
        let source = source::<OfWarehouse>("one");
        let late = vec![upsert::<OfWarehouse>(1, 1, 20, "late"), upsert::<OfWarehouse>(2, 2, 10, "another")];
        let applied = gated.apply(&source, Some(Offset(1)), Offset(3), late).await.unwrap();
        assert_eq!((applied.outcomes.filtered[FilterReason::Erased as usize], applied.outcomes.stored), (1, 1), "{database}");
        assert_eq!(bench.rows().await.len(), 2, "{database}");
        let tombstone = Change::Delete { offset: Offset(3), key: OfWarehouse::key(1) };
        gated.apply(&source, Some(Offset(3)), Offset(5), vec![tombstone, upsert::<OfWarehouse>(4, 1, 30, "later")]).await.unwrap();
        assert_eq!(bench.rows().await.into_values().map(|(_, tag)| tag).collect::<Vec<_>>(), ["another"], "{database}");
    }
}

#[tokio::test]
async fn blocks_come_back_as_they_were_stored() {
    for database in ["sqlite", "postgres"] {
        let Some(bench) = Bench::<OfVault>::on(database).await else { continue };
        let record = OfVault::record(1, 10, "a");
        bench.apply(None, 1, vec![Change::Upsert { offset: Offset(0), record: record.clone() }]).await.unwrap();
        assert_eq!(bench.store.blocks(&seller(), token(1)).await.unwrap(), [record], "{database}");
        assert!(bench.store.blocks(&seller(), token(2)).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn personal_erasure_leaves_business_rows() {
    let bench = Bench::<OfWarehouse>::on("sqlite").await.unwrap();
    bench.apply(None, 1, vec![upsert::<OfWarehouse>(0, 1, 10, "a")]).await.unwrap();
    assert_eq!(bench.store.forget(&[subject(1)], Extent::Personal).await.unwrap(), 0);
    assert_eq!(bench.rows().await.len(), 1);
}

#[tokio::test]
async fn the_freshness_view_names_every_table_that_has_rows() {
    for database in ["sqlite", "postgres"] {
        let Some(bench) = Bench::<OfWarehouse>::on(database).await else { continue };
        bench.apply(None, 1, vec![upsert::<OfWarehouse>(0, 1, 10, "a")]).await.unwrap();
        let rows: Vec<(String, String, i64)> =
            sqlx::query_as("SELECT table_name, selling_partner_id, row_count FROM freshness").fetch_all(&bench.sql).await.unwrap();
        assert_eq!(rows, [("packages".to_owned(), "A1SELLER".to_owned(), 1)], "{database}");
    }
}

#[tokio::test]
async fn a_column_that_an_older_program_did_not_have_is_added_and_described() {
    for database in ["sqlite", "postgres"] {
        let Some(bench) = Bench::<OfVault>::on(database).await else { continue };
        sqlx::query("ALTER TABLE sealed_block DROP COLUMN block").execute(&bench.sql).await.unwrap();
        let again = OfVault::open(&bench.options).await.unwrap();
        let change = vec![upsert::<OfVault>(0, 1, 10, "a")];
        again.apply(&source::<OfVault>("one"), None, Offset(1), change).await.unwrap();
        assert_eq!(again.blocks(&seller(), token(1)).await.unwrap().len(), 1, "{database}");
    }
}

/// A user who owns the tables and nothing else: no files, no checkpoint.
#[tokio::test]
async fn files_that_the_server_does_not_show_are_named_as_residual() {
    let Some(bench) = Bench::<OfVault>::on("postgres").await else { return };
    let role = format!("r_{}", uuid::Uuid::new_v4().simple());
    let (_, database) = bench.options.url.rsplit_once('/').unwrap();
    for sql in [
        format!("CREATE ROLE {role} LOGIN"),
        format!("GRANT ALL ON DATABASE {database} TO {role}"),
        format!("GRANT ALL ON SCHEMA public TO {role}"),
        format!("ALTER TABLE sealed_block OWNER TO {role}"),
        format!("ALTER TABLE held_block OWNER TO {role}"),
        format!("ALTER TABLE sink_offset OWNER TO {role}"),
    ] {
        sqlx::query(AssertSqlSafe(sql)).execute(&bench.sql).await.unwrap();
    }
    let url = bench.options.url.replace("postgres@", &format!("{role}@"));
    let vault = OfVault::open(&StoreOptions { url, ..bench.options.clone() }).await.unwrap();
    vault.apply(&source::<OfVault>("one"), None, Offset(1), vec![upsert::<OfVault>(0, 1, 10, "a")]).await.unwrap();
    let control = Control { case: "case-1".to_owned(), key: KeyId([0xcc; 16]), block: block(KeyId([0xcc; 16])).into_bytes() };
    vault.plant(&control).await.unwrap();
    vault.forget(&[subject(1)], Extent::Personal).await.unwrap();
    let needles = Needles { keys: vec![key_of(1)], controls: vec![control.key], ..Needles::default() };
    let report = vault.scan(&needles).await.unwrap();
    assert!(report.found.is_empty());
    assert_eq!((report.controls_planted, report.controls_found), (1, 1), "in rows alone");
    assert!(report.residual.iter().any(|residual| residual.what.contains("cannot be read")), "{:?}", report.residual);
    assert!(!report.method.contains("every byte"), "{}", report.method);
}

#[tokio::test]
async fn sealed_columns_leave_no_samples_in_the_planners_statistics() {
    let Some(bench) = Bench::<OfVault>::on("postgres").await else { return };
    let changes = (0..200).map(|n| upsert::<OfVault>(n, u8::try_from(n).unwrap(), 1, "a")).collect();
    bench.apply(None, 200, changes).await.unwrap();
    sqlx::query("ANALYZE sealed_block").execute(&bench.sql).await.unwrap();
    let names: Vec<(String,)> =
        sqlx::query_as("SELECT attname::text FROM pg_stats WHERE tablename = 'sealed_block' AND attname IN ('key_id', 'block')")
            .fetch_all(&bench.sql)
            .await
            .unwrap();
    assert!(names.is_empty(), "{names:?}");
}
