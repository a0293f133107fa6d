//! `sunder audit verify`

use serde_json::json;
use sunder_retention::audit::{self, VerifyError};

use super::Failure;
use crate::app::Base;
use crate::cli::{DONE, NOT_TRUE};
use crate::config::Config;
use crate::output::Output;

/// Checks the hash chain.
pub(super) async fn verify(config: Config, output: Output) -> Result<u8, Failure> {
    let base = Base::open(config, None).await?;
    match audit::verify(base.keyring.db()).await {
        Ok(verified) => {
            let answer = json!({ "holds": true, "events": verified.rows, "head": verified.head });
            output.show(&answer, || format!("the chain holds: {} events", verified.rows));
            Ok(DONE)
        }
        Err(VerifyError::Database(error)) => Err(Failure::of("audit verify", &error)),
        Err(broken) => {
            let reason = broken.to_string();
            output.show(&json!({ "holds": false, "reason": reason }), || format!("THE CHAIN IS BROKEN: {reason}"));
            Ok(NOT_TRUE)
        }
    }
}
