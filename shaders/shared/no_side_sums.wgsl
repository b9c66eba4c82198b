// In place of shared/label_sums.wgsl, for operations that sum exponentials alone and write them as
// they are.
// needs: Grid, Stats (shared/bindings.wgsl); Coefficients (shared/coefficients.wgsl); RowState
//   (shared/passes.wgsl); Maximum (shared/transform.wgsl)
// provides: begin_side_sums, add_to_side_sums, rescale_side_sums, add_segment_to_side_sums,
//   reduce_side_sums, element_values

fn begin_side_sums(state: ptr<function, RowState>) {}

fn add_to_side_sums(
    state: ptr<function, RowState>,
    j: u32,
    part: u32,
    end: u32,
    x: vec4<f32>,
    e: vec4<f32>,
) {}

fn rescale_side_sums(state: ptr<function, RowState>, old: Maximum, factor: f32) {}

fn add_segment_to_side_sums(
    state: ptr<function, RowState>,
    segment: Stats,
    maximum: f32,
    factor: f32,
    sum: f32,
) {}

fn reduce_side_sums(grid: Grid, state: ptr<function, RowState>, stats: ptr<function, Stats>) {}

fn element_values(
    state: ptr<function, RowState>,
    j: u32,
    part: u32,
    x: vec4<f32>,
    values: vec4<f32>,
    coefficients: Coefficients,
) -> vec4<f32> {
    return values;
}
