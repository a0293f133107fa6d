//! Requests as they come in: a list of orders, a buyer who gives a name or an address, fields that a law keeps.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use super::assert_no_leak;
use super::extent::pass;
use super::world::{Services, Stores, World};

const READER: [&str; 4] = ["--purpose", "fulfilment", "--role", "shipping"];

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name].as_str().expect("text")
}

fn open(world: &World, seller: &str, order: &str) -> Value {
    let args = [&["open", "--json", "--seller", seller, "--order", order][..], &READER[..]].concat();
    world.run(&args).json
}

/// Orders of `seller` that open now, with their values of `group`.
fn of_group<'v>(world: &World, personal: &'v [Value], seller: &str, group: &str) -> Vec<(&'v str, &'v str)> {
    let of = personal.iter().filter(|p| p["allowed"] == true && text(p, "seller") == seller && text(p, "group") == group);
    let mut seen = BTreeSet::new();
    of.filter(|p| p["value"].is_string() && seen.insert(text(p, "order")))
        .map(|p| (text(p, "order"), text(p, "value")))
        .filter(|(order, _)| open(world, seller, order)["state"] == "readable")
        .take(4)
        .collect()
}

/// Where a person keeps what he was sent; apart from the installation, whose folder must hold none of it.
fn desk() -> tempfile::TempDir {
    tempfile::tempdir().expect("temporary folder")
}

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("written");
    path.display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_orders_and_a_buyer_are_erased_and_nothing_else() {
    let Some(services) = Services::from_env() else { return };
    let world = World::start(&services, Stores::Sqlite, 2, 80, 31, "none").await;
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    let personal = world.simulator.personal().await;
    let seller =
        text(personal.iter().find(|p| p["allowed"] == true && p["group"] == "buyer_contact").expect("a contact"), "seller").to_owned();
    let orders = of_group(&world, &personal, &seller, "buyer_contact");
    let [(listed, _), (named, _), (sought, address), (kept, _)] = orders.as_slice() else { panic!("four orders open: {}", orders.len()) };
    let desk = desk();

    // A plan says what would go, and nothing goes.
    let file = write(desk.path(), "orders.txt", &format!("{listed}\n\n999-9999999-9999999\n"));
    let request = ["erase", "--seller", &seller, "--order", named, "--orders-file", &file, "--reason", "buyer-request", "--json"];
    let plan = world.run(&[&request[..], &["--dry-run"]].concat()).expect(0);
    assert_eq!((&plan["subjects"], &plan["with_live_keys"]), (&json!(3), &json!(2)), "{plan:#}");
    let vault = plan["goes"].as_array().and_then(|goes| goes.iter().find(|g| g["table"] == "sealed_block")).cloned();
    assert!(vault.and_then(|g| g["rows"].as_u64()) > Some(1), "{plan:#}");
    assert!(plan["due_at"].is_string() && open(&world, &seller, listed)["state"] == "readable");
    let case = world.run(&[&request[..], &["--wait"]].concat()).expect(0);
    assert_eq!((&case["state"], &case["subjects"]), (&json!("certified"), &json!(3)), "{case:#}");
    for order in [listed, named] {
        assert_eq!(open(&world, &seller, order)["state"], "erased");
    }

    // A buyer is found by an authorised search alone; what he is called is in no argument, log or database.
    let wanted = write(desk.path(), "address.txt", &format!("  {}\n", address.to_uppercase()));
    let erase = ["erase", "--seller", &seller, "--buyer-email", &wanted, "--reason", "buyer-request", "--json"];
    world.run(&[&erase[..], &["--purpose", "marketing", "--role", "shipping"]].concat()).expect(1);
    world.run(&[&erase[..], &["--purpose", "fulfilment"]].concat()).expect(1);
    let nobody = write(desk.path(), "nobody.txt", "nobody@example.invalid");
    let none = ["erase", "--seller", &seller, "--buyer-email", &nobody, "--reason", "buyer-request", "--json"];
    world.run(&[&none[..], &READER[..]].concat()).expect(3);
    let folder = desk.path().join("export");
    let export = folder.display().to_string();
    let case = world.run(&[&erase[..], &READER[..], &["--export", &export, "--wait"]].concat()).expect(0);
    assert_eq!(case["state"], "certified", "{case:#}");
    let exported = std::fs::read_dir(&folder).expect("the export").map(|entry| entry.expect("entry").path());
    let exported: Vec<String> = exported.map(|path| std::fs::read_to_string(path).expect("a document")).collect();
    assert_eq!(Some(exported.len() as u64), case["subjects"].as_u64());
    assert!(exported.iter().all(|document| document.contains(address)), "what was found carries the address");
    assert_eq!(open(&world, &seller, sought)["state"], "erased");
    assert_eq!(open(&world, &seller, kept)["state"], "readable", "another buyer's order stays");
    // The folder is there: exporting again must not write over it, and so nothing is erased.
    let again = ["erase", "--seller", &seller, "--order", kept, "--reason", "buyer-request", "--export", &export, "--json"];
    world.run(&[&again[..], &READER[..]].concat()).expect(1);
    assert_eq!(open(&world, &seller, kept)["state"], "readable");
    assert_no_leak(&world, &services, &personal).await;
    world.run(&["audit", "verify", "--json"]).expect(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn held_fields_outlive_their_order_and_go_with_the_same_proof_on_sqlite() {
    let Some(services) = Services::from_env() else { return };
    held_fields(&services, Stores::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn held_fields_outlive_their_order_and_go_with_the_same_proof_on_postgresql() {
    let Some(services) = Services::from_env() else { return };
    held_fields(&services, Stores::Postgres).await;
}

async fn held_fields(services: &Services, stores: Stores) {
    let mut world = World::start(services, stores, 1, 60, 32, "none").await;
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    let personal = world.simulator.personal().await;
    let seller = text(personal.iter().find(|p| p["allowed"] == true).expect("a value"), "seller").to_owned();
    let orders = of_group(&world, &personal, &seller, "buyer_name");
    let (order, name) = *orders.first().expect("an order that opens");
    let whole = open(&world, &seller, order);
    let hold = ["hold", "add", "--json", "--seller", &seller, "--order", order, "--statute", "HGB 257", "--document", "invoice"];
    let until = ["--until", "2040-12-31"];
    // Never a phone number, never a whole order, never without an end that lies ahead.
    world.run(&[&hold[..], &["--fields", "buyer_name,buyer_contact"], &until[..]].concat()).expect(2);
    world.run(&[&hold[..], &["--fields", "buyer_name", "--until", "2020-12-31"]].concat()).expect(2);
    let held = world.run(&[&hold[..], &["--fields", "buyer_name"], &until[..]].concat()).expect(0);
    assert_eq!(held["kept"], json!(["buyer_name"]), "{held:#}");

    world.run(&["sellers", "remove", &seller, "--json"]).expect(1);
    let erase = ["erase", "--seller", &seller, "--order", order, "--reason", "buyer-request", "--wait", "--json"];
    let case = world.run(&erase).expect(0);
    assert_eq!(case["state"], "certified", "{case:#}");
    let out = world.folder.path().join("certificate").display().to_string();
    world.run(&["certificate", text(&case, "id"), "--out", &out, "--json"]).expect(0);
    let statement = std::fs::read_to_string(Path::new(&out).join("certificate.json")).expect("statement");
    assert!(
        statement.contains("HGB 257") && statement.contains("2040-12-31"),
        "the certificate names what is held, by which law, until when"
    );
    assert!(!statement.contains(name));

    let after = open(&world, &seller, order);
    assert_eq!((&after["state"], &after["reason"]), (&json!("readable"), &json!("held")), "{after:#}");
    assert_eq!(after["hold"]["statute"], "HGB 257");
    let groups: Vec<&String> = after["groups"].as_object().expect("groups").keys().collect();
    assert_eq!(groups, ["buyer_name"], "what is not held is gone");
    assert_eq!(after["groups"]["buyer_name"], whole["groups"]["buyer_name"]);
    let all = ["erase", "--seller", &seller, "--all", "--reason", "seller-request", "--wait", "--json"];
    world.run(&all).expect(0);
    assert_eq!(open(&world, &seller, order)["reason"], "held", "a request for everything leaves what the law keeps");
    assert_no_leak(&world, services, &personal).await;

    // The hold ends: the same machine, the same proof.
    let before = world.run(&["cases", "--json"]).expect(0).as_array().map_or(0, Vec::len);
    world.run(&["hold", "remove", text(&held, "id"), "--json"]).expect(0);
    pass(&mut world, "1h", "1h").await;
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    assert_eq!(open(&world, &seller, order)["state"], "erased");
    let cases = world.run(&["cases", "--json"]).expect(0);
    let cases = cases.as_array().expect("a list");
    assert!(cases.len() > before && cases.iter().all(|case| case["state"] == "certified"), "{cases:#?}");
    let last = cases.last().expect("a case");
    assert_eq!(world.run(&["verify", text(last, "id"), "--json"]).expect(0)["holds"], true);
    let holds = world.run(&["hold", "list", "--json"]).expect(0);
    assert_eq!(holds[0]["state"], "ended", "{holds:#}");
    world.run(&["audit", "verify", "--json"]).expect(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_inventory_is_red_on_what_nobody_declared_and_certificates_name_what_is_declared() {
    let Some(services) = Services::from_env() else { return };
    for stores in [Stores::Sqlite, Stores::Postgres] {
        let world = World::start(&services, stores, 1, 10, 33, "none").await;
        world.run(&["run", "--until-idle", "--json"]).expect(0);
        world.run(&["inventory", "--json"]).expect(0);

        copy_a_table(&world).await;
        let red = unknown(&world);
        assert_eq!(red, ["warehouse.orders_copy"], "{stores:?}");
        let mut config = std::fs::read_to_string(world.config()).expect("config");
        config.push_str(
            "\n[[copy]]\nwhat = \"the analysts' copy\"\nowner = \"analytics\"\nlife = \"14d\"\ncovers = [\"warehouse.orders_*\"]\n",
        );
        std::fs::write(world.config(), config).expect("config");
        let entries = world.run(&["inventory", "--json"]).expect(0);
        let named = entries.as_array().is_some_and(|all| all.iter().any(|e| text(e, "detail").contains("warehouse.orders_copy")));
        assert!(named, "{entries:#}");

        if stores == Stores::Sqlite {
            let backup = world.folder.path().join("vault.db.bak");
            std::fs::copy(world.folder.path().join("vault.db"), &backup).expect("copied");
            assert_eq!(unknown(&world), [format!("vault.{}", backup.display())]);
            std::fs::remove_file(backup).expect("removed");
        }

        let (seller, order) = super::extent::some_order(&world).await;
        let erase = ["erase", "--seller", &seller, "--order", &order, "--reason", "buyer-request", "--wait", "--json"];
        let case = world.run(&erase).expect(0);
        let out = world.folder.path().join("certificate").display().to_string();
        world.run(&["certificate", text(&case, "id"), "--out", &out, "--json"]).expect(0);
        let statement: Value =
            serde_json::from_slice(&std::fs::read(Path::new(&out).join("certificate.json")).expect("statement")).expect("JSON");
        let copy = statement["residual"].as_array().and_then(|all| all.iter().find(|r| text(r, "what").contains("analysts"))).cloned();
        let copy = copy.expect("the certificate names the declared copy");
        assert!(text(&copy, "what").contains("analytics") && copy["until"].is_string(), "with its owner and its last day: {copy}");
    }
}

/// Names of what the inventory is red about.
fn unknown(world: &World) -> Vec<String> {
    let entries = world.run(&["inventory", "--json"]).expect(3);
    let red = entries.as_array().expect("a list").iter().filter(|e| e["status"] == "fail");
    red.map(|e| text(e, "name").to_owned()).collect()
}

async fn copy_a_table(world: &World) {
    use sqlx::Connection;
    let sql = "CREATE TABLE orders_copy AS SELECT * FROM orders";
    if world.urls.warehouse.starts_with("postgres") {
        let mut connection = sqlx::PgConnection::connect(&world.urls.warehouse).await.expect("warehouse answers");
        sqlx::raw_sql(sql).execute(&mut connection).await.expect("copied");
    } else {
        let mut connection = sqlx::SqliteConnection::connect(&world.urls.warehouse).await.expect("warehouse answers");
        sqlx::raw_sql(sql).execute(&mut connection).await.expect("copied");
    }
}
