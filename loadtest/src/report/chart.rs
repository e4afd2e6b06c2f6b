//! Line charts as SVG text, without a library and without a script.

use std::fmt::Write;

use super::table::figure;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 46.0;
/// Colours that people who do not see all colours can tell apart.
const COLOURS: [&str; 8] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d00", "#777777"];

/// How values become places on an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Equal steps.
    Linear,
    /// Equal factors.
    Log,
    /// Percentiles, stretched towards 100: 90, 99 and 99.9 are equally far apart.
    Percentile,
}

impl Scale {
    fn place(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Log => value.max(1e-6).log10(),
            Self::Percentile => -(1.0 - value.min(99.999) / 100.0).log10(),
        }
    }
}

/// One line.
#[derive(Debug, Clone)]
pub struct Line {
    /// What the legend calls it.
    pub name: String,
    /// Its points.
    pub points: Vec<(f64, f64)>,
    /// A law instead of a measurement: dashed, in the colour of the line before, not in the legend.
    pub law: bool,
}

/// A chart.
#[derive(Debug, Clone)]
pub struct Chart {
    /// What stands above it.
    pub title: String,
    /// The horizontal axis: its label and scale.
    pub across: (String, Scale),
    /// The vertical axis.
    pub up: (String, Scale),
    /// The lines.
    pub lines: Vec<Line>,
}

/// Text that is safe between tags and in attributes.
#[must_use]
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The part of an axis that is shown, in places.
#[derive(Clone, Copy)]
struct Span {
    from: f64,
    to: f64,
}

impl Span {
    fn of(places: impl Iterator<Item = f64>) -> Self {
        let (from, to) = places.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), it| (a.min(it), b.max(it)));
        if to - from < 1e-9 { Self { from: from - 0.5, to: to + 0.5 } } else { Self { from, to } }
    }

    fn part(self, place: f64) -> f64 {
        (place - self.from) / (self.to - self.from)
    }
}

impl Chart {
    /// The chart as an SVG element; nothing if there is no point.
    #[must_use]
    pub fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        if points().next().is_none() {
            return String::new();
        }
        let across = Span::of(points().map(|point| self.across.1.place(point.0)));
        let mut up = Span::of(points().map(|point| self.up.1.place(point.1)));
        match self.up.1 {
            // Costs that do not grow must look flat: never less than a factor of ten.
            Scale::Log if up.to - up.from < 1.0 => {
                let middle = f64::midpoint(up.from, up.to);
                up = Span { from: middle - 0.5, to: middle + 0.5 };
            }
            Scale::Log => {}
            Scale::Linear | Scale::Percentile => up.from = up.from.min(0.0),
        }
        let place = |(x, y): (f64, f64)| {
            let right = LEFT + across.part(self.across.1.place(x)) * (WIDTH - LEFT - RIGHT);
            let down = HEIGHT - BOTTOM - up.part(self.up.1.place(y)) * (HEIGHT - TOP - BOTTOM);
            (right, down)
        };
        let mut out =
            format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">", escape(&self.title));
        self.axes(&mut out, across, up, &place);
        let mut colour = COLOURS.len() - 1;
        for line in &self.lines {
            if !line.law {
                colour = (colour + 1) % COLOURS.len();
            }
            draw(&mut out, line, COLOURS[colour], &place);
        }
        out.push_str("</svg>");
        out
    }

    fn axes(&self, out: &mut String, across: Span, up: Span, place: &dyn Fn((f64, f64)) -> (f64, f64)) {
        let bottom = HEIGHT - BOTTOM;
        for value in ticks(self.across.1, across) {
            let (x, _) = place((value, 1.0));
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 16.0,
                short(value)
            );
        }
        for value in ticks(self.up.1, up) {
            let (_, y) = place((1.0, value));
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                y + 4.0,
                short(value)
            );
        }
        let _ = write!(
            out,
            "<text class=\"label\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text class=\"label\" transform=\"translate(14 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            f64::midpoint(LEFT, WIDTH),
            HEIGHT - 8.0,
            escape(&self.across.0),
            f64::midpoint(TOP, bottom),
            escape(&self.up.0)
        );
    }

    /// The legend as an HTML list.
    #[must_use]
    pub fn legend(&self) -> String {
        let names = self.lines.iter().filter(|line| !line.law).zip(COLOURS.iter().cycle());
        let items: Vec<String> = names
            .map(|(line, colour)| format!("<li><span style=\"background:{colour}\"></span>{}</li>", escape(&line.name)))
            .collect();
        format!("<ul class=\"legend\">{}</ul>", items.concat())
    }
}

fn draw(out: &mut String, line: &Line, colour: &str, place: &dyn Fn((f64, f64)) -> (f64, f64)) {
    let places: Vec<(f64, f64)> = line.points.iter().map(|point| place(*point)).collect();
    let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let dash = if line.law { " stroke-dasharray=\"5 4\" opacity=\"0.6\"" } else { "" };
    let _ = write!(
        out,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>",
        path.join(" ")
    );
    if line.law {
        return;
    }
    for ((x, y), (across, up)) in places.iter().zip(&line.points) {
        let _ = write!(
            out,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"><title>{}: {} → {}</title></circle>",
            escape(&line.name),
            short(*across),
            figure(*up)
        );
    }
}

/// Round values that lie in a span.
fn ticks(scale: Scale, span: Span) -> Vec<f64> {
    match scale {
        Scale::Percentile => {
            let all = [0.0, 50.0, 90.0, 99.0, 99.9, 99.99];
            all.into_iter().filter(|value| scale.place(*value) <= span.to + 1e-9).collect()
        }
        Scale::Log => {
            let decades = (span.from.floor() as i32)..=(span.to.ceil() as i32);
            let steps: &[f64] = if span.to - span.from < 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
            let values = decades.flat_map(|decade| steps.iter().map(move |step| step * 10.0_f64.powi(decade)));
            let inside = |value: &f64| (span.from - 1e-9..=span.to + 1e-9).contains(&value.log10());
            values.filter(inside).collect()
        }
        Scale::Linear => {
            let rough = (span.to - span.from) / 5.0;
            let decade = 10.0_f64.powf(rough.log10().floor());
            let step = [1.0, 2.0, 5.0, 10.0].map(|part| part * decade).into_iter().find(|step| *step >= rough);
            let step = step.unwrap_or(decade * 10.0);
            let first = (span.from / step).ceil();
            (0..=10)
                .map(|number| (first + f64::from(number)) * step)
                .take_while(|value| *value <= span.to + 1e-9)
                .collect()
        }
    }
}

fn short(value: f64) -> String {
    let text = if value >= 1e6 {
        format!("{}M", value / 1e6)
    } else if value >= 1e4 {
        format!("{}k", value / 1e3)
    } else {
        format!("{value:.4}")
    };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> Chart {
        let line = Line { name: "a <b>".to_owned(), points, law: false };
        Chart {
            title: "cost & size".to_owned(),
            across: ("members".to_owned(), Scale::Log),
            up: ("µs".to_owned(), Scale::Log),
            lines: vec![line],
        }
    }

    #[test]
    fn every_point_is_drawn_inside_the_frame_and_names_are_escaped() {
        let svg = chart(vec![(1.0, 90.0), (10.0, 91.0), (1000.0, 89.0)]).svg();
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains("cost &amp; size") && !svg.contains("<b>"));
        for part in svg.split("cx=\"").skip(1) {
            let x: f64 = part.split('"').next().unwrap().parse().unwrap();
            assert!((LEFT..=WIDTH).contains(&x), "{x}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn a_chart_without_points_is_left_out_and_one_point_is_a_chart() {
        assert_eq!(chart(Vec::new()).svg(), "");
        assert!(chart(vec![(5.0, 5.0)]).svg().contains("<circle"));
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks(Scale::Log, Span { from: 0.0, to: 3.0 }), [1.0, 10.0, 100.0, 1000.0]);
        assert_eq!(ticks(Scale::Linear, Span { from: 0.0, to: 10.0 }), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!((short(20_000.0), short(0.5), short(100.0)), ("20k".to_owned(), "0.5".to_owned(), "100".to_owned()));
    }
}
