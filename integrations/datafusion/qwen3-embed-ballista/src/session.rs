//! The sessions of the three programs: with object stores of S3, and with the functions of qwen3-embed.

use ballista_core::extension::{
    ballista_aggregate_functions, ballista_scalar_functions, ballista_window_functions,
};
use ballista_core::object_store::{runtime_env_with_s3_support, session_config_with_s3_support};
use datafusion::error::Result;
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::prelude::SessionConfig;
use qwen3_embed_datafusion::Functions;

/// The configuration of a session. Options of another process are accepted only if they are in it.
pub(crate) fn config() -> SessionConfig {
    Functions::configure(session_config_with_s3_support())
}

/// A session with this configuration.
pub(crate) fn state(functions: &Functions, config: SessionConfig) -> Result<SessionState> {
    let state = SessionStateBuilder::new()
        .with_runtime_env(runtime_env_with_s3_support(&config)?)
        .with_config(config)
        .with_default_features()
        .with_scalar_functions(ballista_scalar_functions())
        .with_aggregate_functions(ballista_aggregate_functions())
        .with_window_functions(ballista_window_functions());
    Ok(functions.register(state).build())
}
