//! Line charts as SVG, for documents.

use std::fmt::Write as _;

/// Lines over a few places on the x axis that are equally far apart.
#[derive(Clone, Debug)]
pub struct Chart {
    /// What is shown.
    pub title: String,
    /// What the x axis is.
    pub x_label: String,
    /// The places on the x axis.
    pub x: Vec<String>,
    /// The lines: a name, and a value for each place.
    pub lines: Vec<(String, Vec<f64>)>,
}

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 48.0;
const TOP: f64 = 32.0;
const BOTTOM: f64 = 44.0;
const LEGEND: f64 = 130.0;

/// Told apart by those who see no red or no green, too (Okabe and Ito).
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999"];

impl Chart {
    /// Charts side by side, as one picture.
    pub fn picture(charts: &[Self]) -> String {
        let width = WIDTH * charts.len() as f64;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {HEIGHT}\" width=\"{width}\" \
             height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"11\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
        );
        for (i, chart) in charts.iter().enumerate() {
            let _ = writeln!(out, "<g transform=\"translate({},0)\">", i as f64 * WIDTH);
            chart.draw(&mut out);
            out.push_str("</g>\n");
        }
        out.push_str("</svg>\n");
        out
    }

    fn draw(&self, out: &mut String) {
        let values = || self.lines.iter().flat_map(|(_, values)| values).copied().filter(|v| v.is_finite());
        let step = step(values().fold(0.0, f64::max));
        let top = (values().fold(0.0, f64::max) / step).ceil().max(1.0) * step;
        let (right, bottom) = (WIDTH - LEGEND, HEIGHT - BOTTOM);
        let y = |value: f64| bottom - (bottom - TOP) * value / top;
        let x = |i: usize| LEFT + 12.0 + (right - LEFT - 24.0) * i as f64 / (self.x.len() - 1).max(1) as f64;
        text(out, LEFT, 16.0, "start", &self.title);
        text(out, (LEFT + right) / 2.0, HEIGHT - 8.0, "middle", &self.x_label);
        for tick in 0..=(top / step).round() as usize {
            let value = tick as f64 * step;
            let at = y(value);
            let _ = writeln!(out, "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#dddddd\" fill=\"none\"/>");
            text(out, LEFT - 6.0, at + 4.0, "end", &format!("{}", (value * 1e6).round() / 1e6));
        }
        for (i, label) in self.x.iter().enumerate() {
            text(out, x(i), bottom + 16.0, "middle", label);
        }
        for (i, (name, values)) in self.lines.iter().enumerate() {
            let colour = COLOURS[i % COLOURS.len()];
            let points = values.iter().enumerate().filter(|(_, v)| v.is_finite());
            let points: Vec<String> = points.map(|(i, &v)| format!("{:.1},{:.1}", x(i), y(v))).collect();
            let points = points.join(" ");
            let _ = writeln!(
                out,
                "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"
            );
            let at = TOP + 8.0 + 16.0 * i as f64;
            let _ = writeln!(
                out,
                "<path d=\"M{} {at}h14\" stroke=\"{colour}\" stroke-width=\"3\" fill=\"none\"/>",
                right + 10.0
            );
            text(out, right + 28.0, at + 4.0, "start", name);
        }
    }
}

/// A round number of which up to `max` there are some five.
fn step(max: f64) -> f64 {
    let max = if max > 0.0 { max } else { 1.0 };
    let power = 10f64.powf((max / 5.0).log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|step| max / step <= 6.0).unwrap_or(max)
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_every_line_and_label() {
        let chart = Chart {
            title: "a < b".to_owned(),
            x_label: "length".to_owned(),
            x: vec!["1".to_owned(), "2".to_owned()],
            lines: vec![("up".to_owned(), vec![1.0, 2.0]), ("gap".to_owned(), vec![f64::NAN, 0.5])],
        };
        let svg = Chart::picture(&[chart.clone(), chart]);
        assert_eq!((svg.matches("<polyline").count(), svg.matches("<g ").count()), (4, 2));
        assert!(svg.contains("a &lt; b") && svg.contains(">gap<") && !svg.contains("NaN"));
        assert_eq!([0.9, 5.0, 12.0, 700.0].map(step), [0.2, 1.0, 2.0, 200.0]);
    }
}
