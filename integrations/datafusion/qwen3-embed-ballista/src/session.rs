//! The sessions of the three programs: with object stores of S3, and with the functions of qwen3-embed.

use std::sync::Arc;

use ballista_core::extension::{
    ballista_aggregate_functions, ballista_scalar_functions, ballista_window_functions,
};
use ballista_core::object_store::{
    CustomObjectStoreRegistry, S3Options, session_config_with_s3_support,
};
use datafusion::error::Result;
use datafusion::execution::object_store::{DefaultObjectStoreRegistry, ObjectStoreRegistry};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::prelude::SessionConfig;
use object_store::ObjectStore;
use qwen3_embed_datafusion::Functions;
use url::Url;

/// The configuration of a session. Options of another process are accepted only if they are in it.
pub(crate) fn config() -> SessionConfig {
    // Ballista moves calls of models into scans, where rows are not regrouped.
    Functions::configure(session_config_with_s3_support().with_batch_size(1024))
}

/// A session with this configuration.
pub(crate) fn state(functions: &Functions, config: SessionConfig) -> Result<SessionState> {
    let state = SessionStateBuilder::new()
        .with_runtime_env(runtime_env(&config)?)
        .with_config(config)
        .with_default_features()
        .with_scalar_functions(ballista_scalar_functions())
        .with_aggregate_functions(ballista_aggregate_functions())
        .with_window_functions(ballista_window_functions());
    Ok(functions.register(state).build())
}

/// An environment with the object stores of the session's options.
pub(crate) fn runtime_env(config: &SessionConfig) -> Result<Arc<RuntimeEnv>> {
    let options = config.options().extensions.get::<S3Options>().cloned().unwrap_or_default();
    let stores = Stores {
        of_options: CustomObjectStoreRegistry::new(options),
        registered: DefaultObjectStoreRegistry::new(),
    };
    RuntimeEnvBuilder::new().with_object_store_registry(Arc::new(stores)).build_arc()
}

/// The object stores of Ballista, which the options `s3.` and the environment describe, and those that a shell
/// registers. Only the first are known to all processes, so they are preferred.
#[derive(Debug)]
struct Stores {
    of_options: CustomObjectStoreRegistry,
    registered: DefaultObjectStoreRegistry,
}

impl ObjectStoreRegistry for Stores {
    fn register_store(
        &self,
        url: &Url,
        store: Arc<dyn ObjectStore>,
    ) -> Option<Arc<dyn ObjectStore>> {
        self.registered.register_store(url, store)
    }

    fn get_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        self.of_options.get_store(url).or_else(|_| self.registered.get_store(url))
    }
}
