//! A PostgreSQL database of a bench's own, on a server that is given.

use std::str::FromStr as _;

use anyhow::Context as _;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _};

/// A database that is made for a run and dropped after it.
#[derive(Debug)]
pub struct Database {
    server: PgConnectOptions,
    name: String,
    url: String,
}

impl Database {
    /// Makes an empty database called `sunder_bench_<name>` on the server of `server_url`; one that is left of an earlier run goes.
    ///
    /// # Errors
    /// Where the server does not let us.
    pub async fn create(server_url: &str, name: &str) -> anyhow::Result<Self> {
        let server = PgConnectOptions::from_str(server_url).context("read the server's URL")?;
        let name = format!("sunder_bench_{name}_{}", std::process::id());
        let (front, _) = server_url.rsplit_once('/').context("the server's URL names no database")?;
        let this = Self { url: format!("{front}/{name}"), server, name };
        this.on_server("DROP DATABASE IF EXISTS").await?;
        this.on_server("CREATE DATABASE").await?;
        Ok(this)
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A connection to it.
    ///
    /// # Errors
    /// Where the server does not let us.
    pub async fn connect(&self) -> anyhow::Result<PgConnection> {
        self.server.clone().database(&self.name).connect().await.context("connect to the bench's database")
    }

    /// Drops it. What still is connected is cut off.
    ///
    /// # Errors
    /// Where the server does not let us.
    pub async fn remove(self) -> anyhow::Result<()> {
        let mut connection = self.server.connect().await.context("connect to the server")?;
        // The name is made of a constant and a number.
        connection.execute(AssertSqlSafe(format!("DROP DATABASE {} WITH (FORCE)", self.name))).await.context("drop the database")?;
        Ok(connection.close().await?)
    }

    async fn on_server(&self, statement: &str) -> anyhow::Result<()> {
        let mut connection = self.server.connect().await.context("connect to the server")?;
        connection.execute(AssertSqlSafe(format!("{statement} {}", self.name))).await.context("make the database")?;
        Ok(connection.close().await?)
    }
}
