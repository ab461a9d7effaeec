use std::sync::Arc;

use datafusion::execution::SessionStateBuilder;
use datafusion::logical_expr::ScalarUDF;
use datafusion::logical_expr::async_udf::AsyncScalarUDF;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::prelude::{SessionConfig, SessionContext};

use crate::embed::{Embed, Kind};
use crate::local::Place;
use crate::remote::Remote;
use crate::rerank::Rerank;
use crate::vectors::{Function, Vectors};
use crate::{Models, Qwen3Options, RegroupRows, Server};

/// The SQL functions of this crate.
#[derive(Debug, Clone)]
pub struct Functions(Vec<Arc<ScalarUDF>>);

impl Functions {
    /// Functions that are computed in this process.
    pub fn local(models: Arc<Models>) -> Self {
        Self::at(&Place::Here(models))
    }

    /// Functions that are computed by executors, for the client and the scheduler of a cluster. They can be planned
    /// but not called. The session must set the number of dimensions, see [`Qwen3Options::dimensions`].
    pub fn on_executors() -> Self {
        Self::at(&Place::Executors)
    }

    /// Functions that a server computes. The options of sessions have no effect: the server's settings decide.
    pub fn remote(server: &Arc<Server>) -> Self {
        let remote = Remote::all(server)
            .map(|function| AsyncScalarUDF::new(Arc::new(function)).into_scalar_udf());
        Self::with_vectors(remote)
    }

    fn at(place: &Place) -> Self {
        let embed = Kind::ALL.map(|kind| Embed::new(kind, place.clone()).into());
        Self::with_vectors(embed.into_iter().chain([Rerank::new(place.clone()).into()]))
    }

    fn with_vectors(functions: impl Iterator<Item = ScalarUDF>) -> Self {
        let vectors = Function::ALL.map(|function| Vectors::new(function).into());
        Self(functions.chain(vectors).map(Arc::new).collect())
    }

    /// Adds the functions, their options and [`RegroupRows`] to a session.
    pub fn register(&self, mut state: SessionStateBuilder) -> SessionStateBuilder {
        let config = state.config().take().unwrap_or_default();
        *state.config() = Some(Self::configure(config));
        let functions = state.scalar_functions().get_or_insert_default();
        functions.extend(self.0.iter().cloned());
        let rules = state.physical_optimizers().get_or_insert_default().rules.clone();
        let regroup: Arc<dyn PhysicalOptimizerRule + Send + Sync> = Arc::new(RegroupRows);
        let first_and_last = [regroup.clone()].into_iter().chain(rules).chain([regroup]);
        state.with_physical_optimizer_rules(first_and_last.collect())
    }

    /// Adds the functions to a session that is in use, for which [`register`](Self::register) is too late. Its
    /// configuration must have [`Qwen3Options`], and its rows are not regrouped.
    pub fn add_to(&self, context: &SessionContext) {
        let state = context.state();
        for function in &self.0 {
            let updated = function.inner().with_updated_config(state.config().options());
            context.register_udf(updated.unwrap_or_else(|| function.as_ref().clone()));
        }
    }

    /// Adds [`Qwen3Options`] to a configuration that does not have them. [`register`](Self::register) does it, too.
    pub fn configure(config: SessionConfig) -> SessionConfig {
        if config.options().extensions.get::<Qwen3Options>().is_some() {
            return config;
        }
        config.with_option_extension(Qwen3Options::default())
    }

    /// The functions.
    pub fn udfs(&self) -> &[Arc<ScalarUDF>] {
        &self.0
    }
}
