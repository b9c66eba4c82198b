//! `logits bench --plot`: GB/s over classes, a line an operation, and the copy's.

use std::collections::BTreeMap;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::Row;
use crate::CliError;

/// The width of the chart with its axes.
const CHART: u32 = 900;
/// The width of the legend to the right of it: enough for the longest name of an operation.
const LEGEND: u32 = 200;
const HEIGHT: u32 = 560;
/// The height of a line of the legend.
const LINE: i32 = 20;

/// The picture, as SVG.
pub(crate) fn draw(rows: &[Row], title: &str) -> Result<String, CliError> {
    let mut svg = String::new();
    paint(&mut svg, rows, title)
        .map_err(|error| CliError::Usage(format!("nothing to draw: {error}")))?;
    Ok(svg)
}

fn paint(svg: &mut String, rows: &[Row], title: &str) -> Result<(), Box<dyn std::error::Error>> {
    let mut lines: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    let mut copies: BTreeMap<usize, f64> = BTreeMap::new();
    for row in rows {
        lines.entry(row.op().to_owned()).or_default().push((row.classes() as f64, row.gb_per_s()));
        // A shape has as many copies as operations, all the same but for noise.
        copies
            .entry(row.classes())
            .and_modify(|best| *best = best.max(row.copy_gb_per_s()))
            .or_insert(row.copy_gb_per_s());
    }
    let copies = copies.into_iter().map(|(classes, rate)| (classes as f64, rate)).collect();
    let least = rows.iter().map(Row::classes).min().ok_or("no measurement")? as f64;
    let most = rows.iter().map(Row::classes).max().ok_or("no measurement")? as f64;
    let all = lines.values().flatten().chain(&copies).map(|(_, rate)| *rate);
    let highest = all.fold(0.0, f64::max);

    let area = SVGBackend::with_string(svg, (CHART + LEGEND, HEIGHT)).into_drawing_area();
    area.fill(&WHITE)?;
    // The chart's own legend would stand over its lines.
    let (left, legend) = area.split_horizontally(CHART);
    let mut chart = ChartBuilder::on(&left)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d((least * 0.8..most * 1.25).log_scale(), 0.0..highest * 1.1)?;
    chart
        .configure_mesh()
        .x_desc("classes")
        .y_desc("GB/s")
        .x_label_formatter(&|classes| format!("{classes:.0}"))
        .draw()?;
    let copy = ("copy".to_owned(), copies);
    for (nth, (name, mut points)) in std::iter::once(copy).chain(lines).enumerate() {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let color = if nth == 0 { BLACK.to_rgba() } else { Palette99::pick(nth).to_rgba() };
        chart.draw_series(LineSeries::new(points, color.stroke_width(2)).point_size(3))?;
        // From the height of the chart's upper edge on.
        let y = 50 + nth as i32 * LINE;
        legend.draw(&PathElement::new([(0, y), (18, y)], color.stroke_width(2)))?;
        let centered = Pos::new(HPos::Left, VPos::Center);
        let style = TextStyle::from(("sans-serif", 14)).pos(centered);
        legend.draw(&Text::new(name, (26, y), style))?;
    }
    area.present()?;
    Ok(())
}
