//! The picture of the results, in SVG.

use std::collections::BTreeMap;
use std::path::Path;

use plotters::prelude::*;
use serde::{Deserialize, Serialize};

use crate::results::figure;

#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Chart {
    Latency,
    Throughput,
    Cost,
}

pub use Chart::{Cost as COST, Latency as LATENCY, Throughput as THROUGHPUT};

pub const PERCENTILES: [f64; 5] = [50.0, 90.0, 95.0, 99.0, 99.9];

#[derive(Serialize, Deserialize)]
pub struct Point {
    pub chart: Chart,
    pub line: String,
    pub x: f64,
    /// Milliseconds, or calls per second.
    pub y: f64,
}

const SIZE: (u32, u32) = (1000, 1350);
const FONT: &str = "sans-serif";

pub fn draw(file: &Path, points: &[Point]) {
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE).unwrap();
    let charts = [
        (Chart::Latency, "Latency: milliseconds by percentile"),
        (Chart::Throughput, "Throughput: calls per second by clients"),
        (Chart::Cost, "Cost by size: milliseconds by jobs, shares or volumes"),
    ];
    for ((chart, title), panel) in charts.into_iter().zip(area.split_evenly((3, 1))) {
        let mut lines: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
        for point in points.iter().filter(|point| point.chart == chart) {
            // Percentiles are as many nines apart as their place says.
            let x = if chart == Chart::Latency { 1.0 / (100.0 - point.x) } else { point.x };
            lines.entry(&point.line).or_default().push((x, point.y));
        }
        if !lines.is_empty() {
            draw_lines(&panel, chart, title, &lines);
        }
    }
    area.present().unwrap();
}

/// Both axes are logarithmic: what is compared differs by orders of magnitude.
fn draw_lines(
    panel: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    chart: Chart,
    title: &str,
    lines: &BTreeMap<&str, Vec<(f64, f64)>>,
) {
    let all = || lines.values().flatten();
    let range = |of: fn(&(f64, f64)) -> f64, margin: f64| {
        let least = all().map(of).fold(f64::INFINITY, f64::min);
        let most = all().map(of).fold(0.0, f64::max);
        (least / margin..most * margin).log_scale()
    };
    let mut context = ChartBuilder::on(panel)
        .caption(title, (FONT, 18))
        .margin(10)
        // Room for the legend.
        .margin_right(300)
        .x_label_area_size(30)
        .y_label_area_size(60)
        .build_cartesian_2d(range(|point| point.0, 1.05), range(|point| point.1, 1.3))
        .unwrap();
    let x_label = |x: &f64| match chart {
        Chart::Latency => format!("p{}", (1000.0 - 10.0 / x).round() / 10.0),
        _ => x.to_string(),
    };
    context
        .configure_mesh()
        .light_line_style(WHITE)
        .x_label_formatter(&x_label)
        .y_label_formatter(&|y| figure(*y))
        .label_style((FONT, 13))
        .draw()
        .unwrap();
    for (index, (name, points)) in lines.iter().enumerate() {
        let style = Palette99::pick(index).stroke_width(2);
        let series = LineSeries::new(points.iter().copied(), style).point_size(3);
        context.draw_series(series).unwrap();
        let (left, top) = (SIZE.0 as i32 - 290, 40 + 20 * index as i32);
        panel.draw(&PathElement::new([(left, top + 7), (left + 20, top + 7)], style)).unwrap();
        panel.draw(&Text::new((*name).to_owned(), (left + 26, top), (FONT, 13))).unwrap();
    }
}
