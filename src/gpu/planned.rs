//! The plan of a step, for people and tools, found without compiling a pipeline.

use super::context::Gpu;
use super::failure::GpuError;
use super::prepared::Prepared;
use super::step::Lowered;
use crate::ops::Operation;
use crate::plan::{About, ExecutionPlan, KernelProblem, MOST_PASSES};
use crate::problem::limits::CallLimits;
use crate::{CrossEntropy, DType, Error, Shape};

impl Gpu {
    /// The plan of an operation with its default options: lowered and planned as
    /// [`StepBuilder::build`](super::StepBuilder::build) does, and as a call over host memory.
    pub(crate) fn plan(
        &self,
        operation: Operation,
        shape: Shape,
        dtype: DType,
        call: CallLimits,
    ) -> Result<ExecutionPlan, Error> {
        let default_loss = CrossEntropy::default();
        let Lowered { problem, options, .. } =
            self.prepare(operation, shape, dtype).lower(&default_loss)?;
        let context = self.now();
        let prepared = Prepared::over_whole_batch(problem, options, context.limits)
            .map_err(|error| context.error(error))?;
        if prepared.plan.row_passes() > MOST_PASSES {
            let (rows, classes) = (shape.row_count(), shape.classes());
            return Err(Error::ShapeTooLarge { rows, classes });
        }
        // For losses over host memory, the host weighs the targets and adds up the rows.
        let of_host = KernelProblem { count: false, sum: false, ..problem };
        let about = About {
            operation: problem.op.spec().name,
            shape,
            dtype,
            device: self.name().to_owned(),
            backend: self.backend(),
        };
        let parts = context
            .parts(of_host, call)
            .map_err(|why| context.error(GpuError::new(why.to_string())))?;
        Ok(ExecutionPlan::of_gpu(about, &prepared.plan, parts))
    }
}
