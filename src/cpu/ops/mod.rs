//! The operations on up to 32 rows at a time, each the twin of its shader.

pub(super) mod backward;
pub(super) mod cross_entropy;
pub(super) mod log_sum_exp;
pub(super) mod predict;
pub(super) mod sample;
pub(super) mod softmax;
