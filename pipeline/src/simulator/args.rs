//! `sunder simulate`: the simulator as a program, and the configuration that points at it.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde_json::json;
use sunder_schemas::time::{Clock as _, Period, SystemClock, Timestamp};
use tokio::net::TcpListener;

use super::{FaultLevel, Faults, RateScale, RoleMissing, Running, Simulator, SimulatorOptions};
use crate::output::Output;

/// Milliseconds of a day.
const DAY: i64 = 86_400_000;

/// Serve a local SP-API with published limits, faults and its own clock.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Examples:\n  sunder simulate --orders 5000 --rate-scale 1000 --write-config sim\n  sunder simulate --faults hostile --clock-offset 70d"
)]
pub struct SimulateArgs {
    /// Address to listen on; loopback alone, port 0 for any free one.
    #[arg(long, default_value = "127.0.0.1:8471", value_name = "ADDR")]
    pub listen: SocketAddr,
    /// Number of sellers; one in five lacks the role that opens buyers and recipients.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub sellers: u32,
    /// Orders that exist at the start, over all sellers.
    #[arg(long, default_value_t = 300, value_name = "N")]
    pub orders: u32,
    /// Further orders that arrive within 30 days.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub later_orders: u32,
    /// Inventory rows per seller and marketplace.
    #[arg(long, default_value_t = 60, value_name = "N")]
    pub inventory_rows: u32,
    /// Seed of all data and faults.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Multiplies Amazon's published rates.
    #[arg(long, default_value_t = RateScale::PUBLISHED, value_name = "FACTOR")]
    pub rate_scale: RateScale,
    /// What goes wrong.
    #[arg(long, value_enum, default_value_t = FaultLevel::None)]
    pub faults: FaultLevel,
    /// What a seller without the role gets when personal data is asked for.
    #[arg(long, value_enum, default_value_t = RoleMissing::LeftOut)]
    pub role_missing: RoleMissing,
    /// Moves the simulator's clock ahead, e.g. 70d; the orders stay where they were.
    #[arg(long, default_value = "0d", value_name = "PERIOD")]
    pub clock_offset: Period,
    /// The instant before which the orders lie; left out: the start of today (UTC).
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub anchor: Option<Timestamp>,
    /// Writes sunder.toml, secrets and tokens that point at this simulator into DIR.
    #[arg(long, value_name = "DIR")]
    pub write_config: Option<PathBuf>,
}

fn parse_time(text: &str) -> Result<Timestamp, &'static str> {
    Timestamp::parse(text).map_err(|_| "a time in ISO 8601, e.g. 2026-11-21T00:00:00Z")
}

/// Why the simulator cannot run.
#[derive(Debug, thiserror::Error)]
pub enum SimulateError {
    /// Too few or too many sellers.
    #[error("sellers must be 1 to {}", super::SELLERS_MAX)]
    Sellers,
    /// Too many orders.
    #[error("orders must be at most {}", super::world::ORDERS_MAX)]
    Orders,
    /// The address is not on this machine alone.
    #[error("the simulator listens on loopback alone, e.g. 127.0.0.1:8471")]
    NotLoopback,
    /// The address cannot be used.
    #[error("cannot listen on the address")]
    Listen(#[source] io::Error),
    /// The world could not be drawn.
    #[error("the simulated data could not be drawn")]
    Draw,
    /// The configuration's files cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Serves until `stopped` completes; says on standard output where it listens, as one JSON document if `json`.
///
/// # Errors
/// [`SimulateError`] where it cannot start or write its files.
pub async fn run(args: SimulateArgs, json: bool, stopped: impl Future<Output = ()>) -> Result<(), SimulateError> {
    if !args.listen.ip().is_loopback() {
        return Err(SimulateError::NotLoopback);
    }
    let listener = TcpListener::bind(args.listen).await.map_err(SimulateError::Listen)?;
    let today = SystemClock::default().now().0;
    let options = SimulatorOptions {
        sellers: args.sellers,
        orders: args.orders,
        later_orders: args.later_orders,
        inventory_rows: args.inventory_rows,
        rate_scale: args.rate_scale,
        faults: Faults::from(args.faults),
        role_missing: args.role_missing,
        // From the clock without the offset: with another offset the same orders are only older.
        anchor: Some(args.anchor.unwrap_or(Timestamp(today - today.rem_euclid(DAY)))),
        ..SimulatorOptions::new(args.seed, Arc::new(SystemClock { offset_ms: args.clock_offset.millis_max() }))
    };
    let running = Simulator::start(options, listener).await?;
    if let Some(folder) = &args.write_config {
        let wish = ConfigWish { clock_offset: args.clock_offset, rate_scale: args.rate_scale };
        write_config(folder, &running, wish)?;
    }
    say(&running, &args, Output { json });
    stopped.await;
    running.stop().await;
    Ok(())
}

fn say(running: &Running, args: &SimulateArgs, output: Output) {
    let config = args.write_config.as_ref().map(|folder| folder.join("sunder.toml").display().to_string());
    // One line: who starts it reads where it listens while it runs.
    output.show_line(&json!({ "endpoint": running.endpoint(), "lwa_endpoint": running.lwa_endpoint(), "config": config }), || {
        let (endpoint, sellers, orders, seed) = (running.endpoint(), args.sellers, args.orders, args.seed);
        let first = format!("simulated SP-API on {endpoint} ({sellers} sellers, {orders} orders, seed {seed})");
        config.iter().fold(first, |text, config| format!("{text}\ngo on with: sunder --config {config} run --until-idle"))
    });
}

/// What a written config says beside where the simulator is.
#[derive(Debug, Clone, Copy)]
pub struct ConfigWish {
    /// `clock.offset`.
    pub clock_offset: Period,
    /// `spapi.rate_scale`.
    pub rate_scale: RateScale,
}

/// Writes the configuration and its secrets, readable by their owner alone.
///
/// # Errors
/// [`SimulateError::Write`].
pub fn write_config(folder: &Path, running: &Running, wish: ConfigWish) -> Result<(), SimulateError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| SimulateError::Write { path, source }
    };
    std::fs::create_dir_all(folder).map_err(failed(folder))?;
    let folder = std::path::absolute(folder).map_err(failed(folder))?;
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        write_private(&path, text).map_err(failed(&path))
    };
    write("lwa-secret", running.client_secret())?;
    for seller in running.sellers() {
        write(&format!("{}.token", seller.id), &seller.refresh_token)?;
    }
    write("sunder.toml", &config_text(&folder, running, wish))
}

/// Writes `text` to a file of mode 0600, whatever was there before.
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut open = std::fs::OpenOptions::new();
    open.write(true).create(true).truncate(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
        open.mode(0o600);
        let mut file = open.open(path)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        file.write_all(text.as_bytes())
    }
    #[cfg(not(unix))]
    open.open(path)?.write_all(text.as_bytes())
}

/// Text as a TOML basic string: JSON's escapes are valid there.
fn quoted(text: &str) -> String {
    json!(text).to_string()
}

fn config_text(folder: &Path, running: &Running, wish: ConfigWish) -> String {
    let file = |name: &str| quoted(&folder.join(name).display().to_string());
    let sqlite = |name: &str| quoted(&format!("sqlite://{}", folder.join(name).display()));
    let mut text = format!(
        "# Points at the simulated SP-API on {endpoint}; made-up data, test settings.\n\
         environment = \"test\"\n\n\
         [clock]\noffset = {offset}\n\n\
         [spapi]\nendpoint = {quoted_endpoint}\nlwa_endpoint = {lwa}\nclient_id = {client}\nclient_secret = {{ file = {secret} }}\nrate_scale = {scale}\n\n",
        endpoint = running.endpoint(),
        offset = quoted(&if wish.clock_offset.millis_max() == 0 { "0d".to_owned() } else { wish.clock_offset.to_string() }),
        quoted_endpoint = quoted(&running.endpoint()),
        lwa = quoted(&running.lwa_endpoint()),
        client = quoted(running.client_id()),
        secret = file("lwa-secret"),
        scale = decimal(wish.rate_scale),
    );
    for seller in running.sellers() {
        text.push_str(&format!(
            "[[seller]]\nid = {}\nregion = {}\nmarketplaces = {}\nrefresh_token = {{ file = {} }}\ndatasets = [\"orders\", \"inventory\"]\n\
             personal = [\"buyer_name\", \"buyer_contact\", \"recipient_address\", \"gift\"]\nsince = \"90d\"\noverlap = \"30m\"\n\n",
            quoted(&seller.id),
            quoted(seller.region),
            json!(seller.marketplaces),
            file(&format!("{}.token", seller.id)),
        ));
    }
    text.push_str(&format!(
        "[kafka]\nbootstrap = \"embedded\"             # in memory; name a broker to keep what is read\nprefix = \"sp\"\npartitions = 4\nreplication = 1\n\n\
         [keys]\nroot = {root}\ndatabase = {keys}\nlease = \"5s\"\nbackup_days = 0\n\n\
         [vault]\nurl = {vault}\n\n[warehouse]\nurl = {warehouse}\n\n[retention]\nprofile = \"test\"\n\n\
         [[purpose]]\nname = \"fulfilment\"\nbasis = \"GDPR 6(1)(b)\"\nfields = [\"buyer_name\", \"buyer_contact\", \"recipient_address\", \"gift\", \"identifiers\"]\nroles = [\"shipping\"]\n",
        root = quoted(&format!("file:{}", folder.join("root.key").display())),
        keys = sqlite("keys.db"),
        vault = sqlite("vault.db"),
        warehouse = sqlite("warehouse.db"),
    ));
    text
}

/// The scale as a TOML float.
fn decimal(scale: RateScale) -> String {
    let text = scale.to_string();
    if text.contains('.') { text } else { format!("{text}.0") }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        args: SimulateArgs,
    }

    #[tokio::test]
    async fn the_written_config_is_one_that_sunder_takes() {
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path().join("a \"quoted\" folder");
        let line = ["sunder", "--sellers", "4", "--orders", "40", "--rate-scale", "250", "--clock-offset", "70d"];
        let args = Program::try_parse_from(line).unwrap().args;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let options = SimulatorOptions { sellers: 4, ..SimulatorOptions::new(1, Arc::new(SystemClock::default())) };
        let running = Simulator::start(options, listener).await.unwrap();
        write_config(&folder, &running, ConfigWish { clock_offset: args.clock_offset, rate_scale: args.rate_scale }).unwrap();

        let path = folder.join("sunder.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let config = config::parse(&path, &text, std::iter::empty()).unwrap();
        assert!(config::check(&config).is_empty(), "{:?}", config::check(&config));
        assert_eq!(config.seller.len(), 4);
        let token = std::fs::read_to_string(folder.join(format!("{}.token", running.sellers()[2].id))).unwrap();
        assert_eq!(token, running.sellers()[2].refresh_token);
        #[cfg(unix)]
        for entry in std::fs::read_dir(&folder).unwrap() {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[tokio::test]
    async fn it_stops_when_told_and_refuses_other_machines() {
        let parse = |listen| Program::try_parse_from(["sunder", "--orders", "10", "--listen", listen]).unwrap().args;
        run(parse("127.0.0.1:0"), true, std::future::ready(())).await.unwrap();
        let refused = run(parse("0.0.0.0:0"), true, std::future::ready(())).await;
        assert!(matches!(refused, Err(SimulateError::NotLoopback)));
        assert!(Program::try_parse_from(["sunder", "--rate-scale", "0"]).is_err());
    }
}
