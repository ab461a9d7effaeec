//! Regrouping of rows, so that the models compute batches of a good size whatever the sizes of the engine's batches.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::compute::BatchCoalescer;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::config::ConfigOptions;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::execution_plan::CardinalityEffect;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties,
    ReplaceChildrenOptions,
};
use futures::{StreamExt, stream};

use crate::embed::Embed;
use crate::rerank::Rerank;

/// The number of rows that a model gets at a time. More rows do not make it faster, because they are more tokens than
/// it computes together. With fewer rows, texts of different lengths are computed together, which is slower, and a
/// query can be canceled only between batches.
const ROWS: usize = 1024;

/// A rule for physical plans: operators that call `embed`, `embed_query` or `rerank` get batches of 1,024 rows.
/// [`Functions::register`](crate::Functions::register) adds it, twice.
///
/// As the first rule, it also keeps calls of models where the query has them. DataFusion moves projections below sorts
/// and into scans, as if all functions were cheap. It cannot move them below the operator that regroups rows.
///
/// The rule has an effect only in a process that computes the functions. A plan that is sent to other processes does
/// not contain the operator of the rule, so these processes must apply the rule to the plan that they get.
#[derive(Debug, Default)]
pub struct RegroupRows;

impl PhysicalOptimizerRule for RegroupRows {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let rewritten = plan.transform_up(|operator| {
            // A scan has no children, and gets no operator.
            let regrouped = |child: &&Arc<dyn ExecutionPlan>| child.is::<Regroup>();
            if !uses_model(&operator)? || operator.children().iter().all(regrouped) {
                return Ok(Transformed::no(operator));
            }
            let children = operator.children().into_iter().cloned();
            let children = children.map(|child| Arc::new(Regroup { input: child }) as _).collect();
            // Regrouping changes no property of the input.
            let keep = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Keep);
            Ok(Transformed::yes(operator.replace_children(children, keep)?))
        });
        Ok(rewritten?.data)
    }

    fn name(&self) -> &str {
        "qwen3_regroup_rows"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Whether an operator calls a function that uses a model in this process.
fn uses_model(operator: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    let mut found = false;
    operator.apply_expressions(&mut |expression: &Arc<dyn PhysicalExpr>| {
        expression.apply(|part| {
            let function = part.downcast_ref::<ScalarFunctionExpr>().map(|call| call.fun().inner());
            found |= function.is_some_and(|function| {
                let embeds = function.downcast_ref().is_some_and(Embed::is_here);
                embeds || function.downcast_ref().is_some_and(Rerank::is_here)
            });
            Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })
    })?;
    Ok(found)
}

/// An operator that passes the rows of its input on in batches of [`ROWS`] rows. Only the last batch is smaller.
#[derive(Debug)]
struct Regroup {
    input: Arc<dyn ExecutionPlan>,
}

impl DisplayAs for Regroup {
    fn fmt_as(&self, kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match kind {
            DisplayFormatType::TreeRender => write!(f, "rows={ROWS}"),
            _ => write!(f, "RegroupExec: rows={ROWS}"),
        }
    }
}

impl ExecutionPlan for Regroup {
    fn name(&self) -> &str {
        "RegroupExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![true]
    }

    fn supports_limit_pushdown(&self) -> bool {
        true
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => Ok(Arc::new(Self { input })),
            _ => datafusion::common::internal_err!("RegroupExec has one child"),
        }
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let recompute = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
        self.replace_children(children, recompute)
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let schema = self.schema();
        let input = self.input.execute(partition, context)?;
        let state = (input, BatchCoalescer::new(schema.clone(), ROWS), false);
        let batches = stream::try_unfold(state, |(mut input, mut rows, mut ended)| async move {
            loop {
                if let Some(batch) = rows.next_completed_batch() {
                    return Ok(Some((batch, (input, rows, ended))));
                }
                if ended {
                    return Ok::<Option<(RecordBatch, _)>, _>(None);
                }
                match input.next().await {
                    Some(batch) => rows.push_batch(batch?)?,
                    None => {
                        ended = true;
                        rows.finish_buffered_batch()?;
                    }
                }
            }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
    }
}
