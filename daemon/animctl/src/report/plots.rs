//! The plots, as SVG.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::{Sum, Timeline};

const WIDTH: u32 = 720;
const GOOD: RGBColor = RGBColor(46, 125, 90);
const BAD: RGBColor = RGBColor(190, 70, 60);
const LINE: RGBColor = RGBColor(60, 110, 190);
/// The colour of the axes, which can be seen on white and on black.
const AXIS: RGBColor = RGBColor(128, 128, 128);
const FONT: &str = "sans-serif";

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// One part of a bar: the value of the row that it shows, and its colour.
type Part = (fn(&Sum) -> f64, RGBColor);
type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// Returns a drawing of `height` pixels, or an empty string where the library cannot draw it.
fn svg(height: u32, draw: impl FnOnce(&Area<'_>) -> Drawn) -> String {
    let mut text = String::new();
    let drawn = {
        let area = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        draw(&area).and_then(|()| area.present())
    };
    if drawn.is_ok() { text } else { String::new() }
}

/// Draws one bar for each row, with its `parts` on top of one another.
fn bars(rows: &[Sum], unit: &str, parts: &[Part]) -> String {
    let top = rows.iter().map(|row| parts.iter().map(|(of, _)| of(row)).sum::<f64>()).fold(0.0, f64::max);
    if top <= 0.0 {
        return String::new();
    }
    svg(200, |area| {
        let count = rows.len();
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            .x_label_area_size(24)
            .y_label_area_size(52)
            .build_cartesian_2d(0.0..count as f64, 0.0..top * 1.05)?;
        let label = |x: &f64| rows.get(*x as usize).map(|row| row.key.clone()).unwrap_or_default();
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(count.min(6))
            .x_label_formatter(&label)
            .y_desc(unit)
            .y_labels(5)
            .axis_style(AXIS)
            .light_line_style(TRANSPARENT)
            .bold_line_style(AXIS.mix(0.3))
            .label_style((FONT, 12).into_font().color(&AXIS))
            .draw()?;
        for (n, row) in rows.iter().enumerate() {
            let mut base = 0.0;
            for (of, color) in parts {
                let value = of(row);
                let (left, right) = (n as f64 + 0.1, n as f64 + 0.9);
                chart.draw_series([Rectangle::new([(left, base), (right, base + value)], color.filled())])?;
                base += value;
            }
        }
        Ok(())
    })
}

/// Draws the jobs of each day, with and without a video.
pub fn jobs(days: &[Sum]) -> String {
    bars(days, "jobs", &[(|s| s.done as f64, GOOD), (|s| (s.failed + s.canceled) as f64, BAD)])
}

/// Draws the energy of each day, in kJ.
pub fn energy(days: &[Sum]) -> String {
    bars(days, "kJ", &[(|s| s.joules / 1e3, LINE)])
}

/// Draws the board's power while a job ran.
pub fn power(timeline: &Timeline) -> String {
    let (Some(first), Some(last)) = (timeline.samples.first(), timeline.samples.last()) else {
        return String::new();
    };
    let start = first.0;
    let seconds = |at: u64| at.saturating_sub(start) as f64 / 1e6;
    let top = timeline.samples.iter().map(|s| s.1).fold(0.0, f64::max);
    if top <= 0.0 || last.0 <= start {
        return String::new();
    }
    svg(160, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            .x_label_area_size(24)
            .y_label_area_size(52)
            .build_cartesian_2d(0.0..seconds(last.0), 0.0..top * 1.1)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_label_formatter(&|x| format!("{x:.0} s"))
            .y_desc("W")
            .y_labels(4)
            .axis_style(AXIS)
            .light_line_style(TRANSPARENT)
            .bold_line_style(AXIS.mix(0.3))
            .label_style((FONT, 12).into_font().color(&AXIS))
            .draw()?;
        let points = timeline.samples.iter().map(|s| (seconds(s.0), s.1));
        chart.draw_series(AreaSeries::new(points, 0.0, LINE.mix(0.2)).border_style(LINE))?;
        Ok(())
    })
}

/// Draws a bar for each denoising step: full colour for computed steps, faint for skipped ones.
pub fn steps(timeline: &Timeline) -> String {
    let top = timeline.steps.iter().map(|s| s.0).fold(0.0, f64::max);
    if top <= 0.0 {
        return String::new();
    }
    svg(120, |area| {
        let count = timeline.steps.len();
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            .x_label_area_size(24)
            .y_label_area_size(52)
            .build_cartesian_2d(0.0..count as f64, 0.0..top * 1.1)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(count.min(8))
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_desc("s")
            .y_labels(3)
            .axis_style(AXIS)
            .light_line_style(TRANSPARENT)
            .bold_line_style(AXIS.mix(0.3))
            .label_style((FONT, 12).into_font().color(&AXIS))
            .draw()?;
        for (n, (seconds, computed)) in timeline.steps.iter().enumerate() {
            let color = if *computed { LINE.mix(1.0) } else { LINE.mix(0.3) };
            let (left, right) = (n as f64 + 0.1, n as f64 + 0.9);
            chart.draw_series([Rectangle::new([(left, 0.0), (right, *seconds)], color.filled())])?;
        }
        Ok(())
    })
}
