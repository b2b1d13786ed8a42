//! The plots, as SVG. Both axes of each have a label with its unit, and whole numbers.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::{Sum, Timeline};

/// As wide as a telephone's page, so that no browser makes the letters smaller.
const WIDTH: u32 = 400;
const GOOD: RGBColor = RGBColor(46, 125, 90);
const BAD: RGBColor = RGBColor(190, 70, 60);
const LINE: RGBColor = RGBColor(60, 110, 190);
/// The colour of the axes, which can be seen on white and on black.
const AXIS: RGBColor = RGBColor(128, 128, 128);
const FONT: &str = "sans-serif";
/// The room on the right of a plot, for half of the last label.
const RIGHT: u32 = 44;
/// The room on the left of a plot, for the labels of its y axis and what they show.
const LEFT: u32 = 64;
/// The height of the letters. None of this font is wider than 0.7 of it.
const LETTERS: u32 = 12;
/// Half the width of a bar; two bars are 1 apart.
const HALF: f64 = 0.4;

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

/// The axes of a plot.
struct Axes<'a> {
    height: u32,
    x: std::ops::Range<f64>,
    /// What the x axis shows, with its unit.
    x_name: &'a str,
    /// The label of a whole number on the x axis.
    x_label: &'a dyn Fn(usize) -> String,
    /// The largest value; the y axis begins at 0.
    top: f64,
    /// What the y axis shows, with its unit.
    y_name: &'a str,
}

/// What is drawn between the axes.
enum Shape {
    /// A bar from the second to the third number, around the first on the x axis.
    Bar(f64, f64, f64, RGBAColor),
    /// A line with the area below it.
    Curve(Vec<(f64, f64)>),
}

/// Returns a number as a label, if it is whole.
fn whole(value: f64) -> Option<usize> {
    ((value - value.round()).abs() < 1e-6 && value > -0.5).then(|| value.round() as usize)
}

fn plot(axes: &Axes<'_>, shapes: Vec<Shape>) -> String {
    svg(axes.height, |area| {
        // From 1 on there is a whole number besides 0 on the axis.
        let top = (axes.top * 1.05).max(1.0);
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .margin_right(RIGHT)
            .x_label_area_size(44)
            .y_label_area_size(LEFT)
            .build_cartesian_2d(axes.x.clone(), 0.0..top)?;
        let count = (axes.x.end - axes.x.start).round() as usize;
        let widest = (axes.x_label)(count).len().max(1) as f64 * 0.7 * f64::from(LETTERS);
        let labels = (f64::from(WIDTH - LEFT - RIGHT) / widest).clamp(2.0, 6.0) as usize;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels((count + 1).min(labels))
            .x_label_formatter(&|x| whole(*x).map(axes.x_label).unwrap_or_default())
            .x_desc(axes.x_name)
            .y_labels(5)
            .y_label_formatter(&|y| whole(*y).map(|y| y.to_string()).unwrap_or_default())
            .y_desc(axes.y_name)
            .axis_style(AXIS)
            .light_line_style(TRANSPARENT)
            .bold_line_style(AXIS.mix(0.3))
            .label_style((FONT, LETTERS).into_font().color(&AXIS))
            .axis_desc_style((FONT, LETTERS).into_font().color(&AXIS))
            .draw()?;
        for shape in shapes {
            match shape {
                Shape::Bar(at, from, to, color) => {
                    let corners = [(at - HALF, from), (at + HALF, to)];
                    chart.draw_series([Rectangle::new(corners, color.filled())])?;
                }
                Shape::Curve(points) => {
                    chart.draw_series(AreaSeries::new(points, 0.0, LINE.mix(0.2)).border_style(LINE))?;
                }
            }
        }
        Ok(())
    })
}

/// Draws one bar for each day, with its `parts` on top of one another.
fn bars(days: &[Sum], name: &str, parts: &[Part]) -> String {
    let top = days.iter().map(|day| parts.iter().map(|(of, _)| of(day)).sum::<f64>()).fold(0.0, f64::max);
    if top <= 0.0 {
        return String::new();
    }
    let mut shapes = Vec::new();
    for (n, day) in days.iter().enumerate() {
        let mut base = 0.0;
        for (of, color) in parts {
            shapes.push(Shape::Bar((n + 1) as f64, base, base + of(day), color.mix(1.0)));
            base += of(day);
        }
    }
    let label = |n: usize| n.checked_sub(1).and_then(|n| days.get(n)).map(|day| day.key.clone());
    let axes = Axes {
        height: 220,
        x: 0.5..days.len() as f64 + 0.5,
        x_name: "day (UTC)",
        x_label: &|n| label(n).unwrap_or_default(),
        top,
        y_name: name,
    };
    plot(&axes, shapes)
}

/// Draws the jobs of each day, with and without a video.
pub fn jobs(days: &[Sum]) -> String {
    bars(days, "jobs", &[(|s| s.done as f64, GOOD), (|s| (s.failed + s.canceled) as f64, BAD)])
}

/// Draws the energy of each day.
pub fn energy(days: &[Sum]) -> String {
    match days.iter().map(|day| day.joules).fold(0.0, f64::max) >= 2e3 {
        true => bars(days, "energy in kJ", &[(|s| s.joules / 1e3, LINE)]),
        false => bars(days, "energy in J", &[(|s| s.joules, LINE)]),
    }
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
    let points = timeline.samples.iter().map(|s| (seconds(s.0), s.1.max(0.0))).collect();
    let axes = Axes {
        height: 190,
        x: 0.0..seconds(last.0).max(1.0),
        x_name: "time in s",
        x_label: &|x| x.to_string(),
        top,
        y_name: "power in W",
    };
    plot(&axes, vec![Shape::Curve(points)])
}

/// Draws a bar for each denoising step: full colour for computed steps, faint for skipped ones.
pub fn steps(timeline: &Timeline) -> String {
    let top = timeline.steps.iter().map(|s| s.0).fold(0.0, f64::max);
    if top <= 0.0 {
        return String::new();
    }
    let (scale, name) = if top < 2.0 { (1e3, "time in ms") } else { (1.0, "time in s") };
    let bar = |(n, (seconds, computed)): (usize, &(f64, bool))| {
        Shape::Bar((n + 1) as f64, 0.0, seconds * scale, LINE.mix(if *computed { 1.0 } else { 0.3 }))
    };
    let axes = Axes {
        height: 190,
        x: 0.5..timeline.steps.len() as f64 + 0.5,
        x_name: "step",
        x_label: &|n| n.to_string(),
        top: top * scale,
        y_name: name,
    };
    plot(&axes, timeline.steps.iter().enumerate().map(bar).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the texts of a drawing with their places on the x axis and how they are anchored.
    fn texts(svg: &str) -> Vec<(f64, String, String)> {
        let attribute = |tag: &str, name: &str| {
            Some(tag.split_once(&format!(" {name}=\""))?.1.split('"').next()?.to_owned())
        };
        svg.split("<text")
            .skip(1)
            .filter_map(|part| {
                let (tag, rest) = part.split_once('>')?;
                let x = attribute(tag, "x")?.parse().ok()?;
                // A text that is turned takes its length on the y axis.
                let turned = tag.contains("rotate");
                let anchor = attribute(tag, "text-anchor").filter(|_| !turned).unwrap_or_default();
                Some((x, anchor, rest.split('<').next()?.trim().to_owned()))
            })
            .collect()
    }

    /// Returns half the width of a text.
    fn half_of(text: &str) -> f64 {
        0.35 * f64::from(LETTERS) * text.len() as f64
    }

    fn day(n: usize, done: u64) -> Sum {
        Sum { key: format!("2026-01-{n:02}"), done, joules: 10.0 * done as f64, ..Sum::default() }
    }

    #[test]
    fn axes_are_labelled_with_whole_numbers_and_nothing_is_clipped() {
        let days: Vec<Sum> = (1..=31).map(|n| day(n, 1 + n as u64 % 2)).collect();
        let timeline = Timeline {
            steps: (0..4).map(|_| (0.123, true)).collect(),
            samples: (0..9).map(|n| (n * 700_000, 31.5, 0, 0, 0, 0)).collect(),
            ..Timeline::default()
        };
        let one = [day(1, 1)];
        let plots = [
            (jobs(&days), ["jobs", "day (UTC)"]),
            (jobs(&one), ["jobs", "day (UTC)"]),
            (energy(&days), ["energy in J", "day (UTC)"]),
            (power(&timeline), ["power in W", "time in s"]),
            (steps(&timeline), ["time in ms", "step"]),
        ];
        for (svg, names) in plots {
            let texts = texts(&svg);
            for name in names {
                assert!(texts.iter().any(|(_, _, text)| text == name), "{name}: {texts:?}");
            }
            let numbers = texts.iter().filter(|(_, _, text)| text.bytes().all(|b| b.is_ascii_digit()));
            assert!(numbers.filter(|(_, _, text)| !text.is_empty()).count() >= 2, "{texts:?}");
            assert!(!texts.iter().any(|(_, _, text)| text.contains('.')), "{texts:?}");
            for (x, anchor, text) in &texts {
                let half = if anchor == "middle" { half_of(text) } else { 0.0 };
                assert!(x - half >= 0.0 && x + half <= f64::from(WIDTH), "{x} {text}");
            }
            // The labels below the plot stand apart, or a row of dates could not be read.
            let mut below: Vec<_> = texts.iter().filter(|(_, anchor, _)| anchor == "middle").collect();
            below.retain(|(_, _, text)| !text.is_empty() && !names.contains(&text.as_str()));
            below.sort_by(|a, b| a.0.total_cmp(&b.0));
            for pair in below.windows(2) {
                assert!(pair[0].0 + half_of(&pair[0].2) <= pair[1].0 - half_of(&pair[1].2), "{pair:?}");
            }
        }
        assert!(jobs(&one).contains("2026-01-01"));
    }
}
