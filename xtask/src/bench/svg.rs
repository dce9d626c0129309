//! Pictures of figures: bars, and lines over sizes. Readable on light and on dark ground; text stays text.

use std::fmt::{self, Write as _};

/// A scale from values to pixels, between two bounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    low: f64,
    high: f64,
    is_log: bool,
    from: f64,
    to: f64,
}

impl Scale {
    /// From zero to somewhat above `most`.
    pub(crate) fn linear(most: f64, from: f64, to: f64) -> Self {
        let step = step(most.max(1e-9));
        Self {
            low: 0.0,
            high: (most / step).ceil().max(1.0) * step,
            is_log: false,
            from,
            to,
        }
    }

    /// Whole decades around `least` and `most`.
    pub(crate) fn decades(least: f64, most: f64, from: f64, to: f64) -> Self {
        let low = least.max(1e-9).log10().floor();
        let high = most.max(1e-9).log10().ceil().max(low + 1.0);
        Self {
            low,
            high,
            is_log: true,
            from,
            to,
        }
    }

    /// Where a value lies.
    pub(crate) fn at(&self, value: f64) -> f64 {
        let value = if self.is_log {
            value.max(1e-12).log10()
        } else {
            value
        };
        let share = ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        self.from + share * (self.to - self.from)
    }

    /// Where the axis is labelled.
    pub(crate) fn ticks(&self) -> Vec<f64> {
        if self.is_log {
            let decades = self.low as i32..=self.high as i32;
            return decades.map(|power| 10f64.powi(power)).collect();
        }
        let step = step(self.high);
        let count = (self.high / step).round() as u32;
        (0..=count).map(|tick| f64::from(tick) * step).collect()
    }
}

/// 1, 2 or 5 times a power of ten, of which `most` holds four to ten.
fn step(most: f64) -> f64 {
    let power = 10f64.powf((most / 4.0).log10().floor());
    let steps = [5.0, 2.0, 1.0].map(|factor| factor * power);
    steps
        .into_iter()
        .find(|step| *step * 4.0 <= most * 1.000_001)
        .unwrap_or(power)
}

/// A value with what it varied between.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    /// The median.
    pub(crate) median: f64,
    /// The least.
    pub(crate) min: f64,
    /// The greatest.
    pub(crate) max: f64,
}

/// One bar.
pub(crate) struct Bar {
    /// Whose colour it has: a class of the style.
    pub(crate) class: &'static str,
    /// Its length.
    pub(crate) spread: Spread,
    /// Paler, as the second of a pair.
    pub(crate) is_pale: bool,
}

/// One line of a bar chart: a name and its bars.
pub(crate) struct Row {
    /// Written at its left.
    pub(crate) label: String,
    /// Below each other.
    pub(crate) bars: Vec<Bar>,
}

/// One line of a line chart.
pub(crate) struct Series {
    /// Written at its end.
    pub(crate) label: String,
    /// Of the style: `s0` to `s9`.
    pub(crate) colour: usize,
    /// Drawn broken.
    pub(crate) is_dashed: bool,
    /// Index of the place on the x axis, and what was found there.
    pub(crate) points: Vec<(usize, Spread)>,
}

/// Bars from the left, one group of them a row.
pub(crate) fn bars(title: &str, subtitle: &str, unit: &str, rows: &[Row], is_log: bool) -> String {
    let spreads = || rows.iter().flat_map(|row| &row.bars).map(|bar| bar.spread);
    let most = spreads().map(|spread| spread.max).fold(0.0, f64::max);
    let least = spreads().map(|spread| spread.min).fold(most, f64::min);
    let (left, right, top) = (260.0, WIDTH - 90.0, 64.0);
    let scale = if is_log {
        Scale::decades(least, most, left, right)
    } else {
        Scale::linear(most, left, right)
    };
    let heights = rows.iter().map(|row| row_height(row.bars.len()));
    let bottom = top + heights.sum::<f64>() + 4.0;
    let mut page = Page::new(title, subtitle, bottom + 46.0);
    for tick in scale.ticks() {
        let x = scale.at(tick);
        page.line("grid", x, top - 4.0, x, bottom);
        page.text("axis middle", x, bottom + 16.0, &number(tick));
    }
    page.text(
        "axis middle",
        f64::midpoint(left, right),
        bottom + 34.0,
        unit,
    );
    let mut y = top;
    for row in rows {
        let height = row_height(row.bars.len());
        page.text("label end", left - 8.0, y + height / 2.0 + 4.0, &row.label);
        for (index, bar) in row.bars.iter().enumerate() {
            let above = y + 3.0 + index as f64 * BAR;
            page.bar(bar, left, &scale, above);
        }
        y += height;
    }
    page.finish()
}

/// Lines over the places of an x axis.
pub(crate) fn lines(
    title: &str,
    subtitle: &str,
    axes: (&str, &str),
    places: &[&str],
    series: &[Series],
) -> String {
    let spreads = || {
        series
            .iter()
            .flat_map(|one| &one.points)
            .map(|point| point.1)
    };
    let most = spreads().map(|spread| spread.max).fold(0.0, f64::max);
    let least = spreads().map(|spread| spread.min).fold(most, f64::min);
    let (left, right, top, bottom) = (70.0, WIDTH - 190.0, 80.0, 436.0);
    let up = Scale::decades(least, most, bottom, top);
    let across = |place: usize| {
        left + 20.0 + (right - left - 40.0) * place as f64 / (places.len().max(2) - 1) as f64
    };
    let mut page = Page::new(title, subtitle, bottom + 46.0);
    for tick in up.ticks() {
        page.line("grid", left, up.at(tick), right, up.at(tick));
        page.text("axis end", left - 6.0, up.at(tick) + 4.0, &number(tick));
    }
    for (place, name) in places.iter().enumerate() {
        page.text("axis middle", across(place), bottom + 18.0, name);
    }
    page.text(
        "axis middle",
        f64::midpoint(left, right),
        bottom + 36.0,
        axes.0,
    );
    page.text("axis end", left - 6.0, top - 14.0, axes.1);
    for one in series {
        page.series(one, across, &up);
    }
    let ends = series.iter().filter_map(|one| {
        let last = one.points.last()?;
        Some((up.at(last.1.median), one))
    });
    let mut ends: Vec<(f64, &Series)> = ends.collect();
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut lowest = f64::NEG_INFINITY;
    for (y, one) in ends {
        // Names do not overlap; each has the colour of its line.
        lowest = f64::max(y + 4.0, lowest + 14.0);
        let class = format!("name t{}", one.colour);
        page.text(&class, right + 6.0, lowest, &one.label);
    }
    page.finish()
}

fn row_height(bars: usize) -> f64 {
    bars.max(1) as f64 * BAR + 8.0
}

/// A number of an axis or a bar, with three digits that count.
pub(crate) fn number(value: f64) -> String {
    let digits = if value == 0.0 || value.abs() >= 100.0 {
        0
    } else {
        (2 - value.abs().log10().floor() as i32).clamp(0, 4) as usize
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// A picture under construction.
struct Page {
    body: String,
    height: f64,
}

impl Page {
    fn new(title: &str, subtitle: &str, height: f64) -> Self {
        let mut page = Self {
            body: String::new(),
            height,
        };
        page.text("title", 12.0, 24.0, title);
        page.text("axis", 12.0, 42.0, subtitle);
        page
    }

    fn text(&mut self, class: &str, x: f64, y: f64, text: &str) {
        let text = Escaped(text);
        self.write(format_args!(
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{text}</text>"
        ));
    }

    fn line(&mut self, class: &str, x1: f64, y1: f64, x2: f64, y2: f64) {
        self.write(format_args!(
            "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
        ));
    }

    fn bar(&mut self, bar: &Bar, left: f64, scale: &Scale, above: f64) {
        let (end, height) = (scale.at(bar.spread.median), BAR - 3.0);
        let (class, pale) = (bar.class, if bar.is_pale { " pale" } else { "" });
        let width = (end - left).max(1.0);
        self.write(format_args!(
            "<rect class=\"{class}{pale}\" x=\"{left:.1}\" y=\"{above:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
        ));
        let middle = above + height / 2.0;
        let (min, max) = (scale.at(bar.spread.min), scale.at(bar.spread.max));
        self.line("spread", min, middle, max, middle);
        for x in [min, max] {
            self.line("spread", x, middle - 3.0, x, middle + 3.0);
        }
        let text = number(bar.spread.median);
        self.text("value", max.max(end) + 5.0, middle + 4.0, &text);
    }

    fn series(&mut self, series: &Series, across: impl Fn(usize) -> f64, up: &Scale) {
        let colour = series.colour;
        let mut path = String::new();
        for &(place, spread) in &series.points {
            let (x, y) = (across(place), up.at(spread.median));
            write!(path, "{x:.1},{y:.1} ").expect("writing to a string");
            let class = format!("l{colour} thin");
            self.line(&class, x, up.at(spread.min), x, up.at(spread.max));
            self.write(format_args!(
                "<circle class=\"f{colour}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>"
            ));
        }
        let dashed = if series.is_dashed { " dashed" } else { "" };
        let path = path.trim_end();
        self.write(format_args!(
            "<polyline class=\"l{colour}{dashed}\" points=\"{path}\"/>"
        ));
    }

    fn write(&mut self, element: fmt::Arguments<'_>) {
        writeln!(self.body, "{element}").expect("writing to a string");
    }

    fn finish(self) -> String {
        let Self { body, height } = self;
        let mut style = STYLE.to_owned();
        for (index, (light, _)) in COLOURS.iter().enumerate() {
            colour(&mut style, index, light);
        }
        style.push_str(DARK);
        for (index, (_, dark)) in COLOURS.iter().enumerate() {
            colour(&mut style, index, dark);
        }
        style.push_str("}\n");
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" \
             height=\"{height:.0}\" role=\"img\">\n<style>\n{style}</style>\n<rect class=\"ground\" width=\"100%\" \
             height=\"100%\"/>\n{body}</svg>\n"
        )
    }
}

fn colour(style: &mut String, index: usize, colour: &str) {
    writeln!(
        style,
        ".l{index}{{stroke:{colour}}} .f{index},.t{index}{{fill:{colour}}}"
    )
    .expect("writing to a string");
}

/// Text between tags.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars() {
            match letter {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

const WIDTH: f64 = 860.0;
const BAR: f64 = 13.0;

const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#1c2733}
.title{font-size:16px;font-weight:600} .axis{fill:#5b6770} .value{font-size:11px} .name{font-size:11px}
.middle{text-anchor:middle} .end{text-anchor:end}
.ground{fill:#ffffff} .grid{stroke:#d9dee3} .spread{stroke:#1c2733}
.ours{fill:#0f8b8d} .raw{fill:#8a949c} .other{fill:#d98032} .pale{opacity:.5}
line,polyline{fill:none;stroke-width:1} polyline{stroke-width:2} .dashed{stroke-dasharray:5 4}
";
const DARK: &str = "@media (prefers-color-scheme:dark){
text{fill:#e6edf3} .axis{fill:#9aa7b2} .ground{fill:#0d1117} .grid{stroke:#2b333c} .spread{stroke:#e6edf3}
.ours{fill:#2bb3b5} .raw{fill:#6d7882} .other{fill:#e3954d}
";
/// Of lines: on light and on dark ground. Ours first.
const COLOURS: [(&str, &str); 10] = [
    ("#0f8b8d", "#2bb3b5"),
    ("#0b5fa5", "#58a6ff"),
    ("#d98032", "#e3954d"),
    ("#b5483a", "#ff7b6b"),
    ("#7d4fa0", "#bc8cff"),
    ("#a0338a", "#f778ba"),
    ("#8a949c", "#9aa7b2"),
    ("#5b6770", "#c3ccd4"),
    ("#6b7f1d", "#a5c23b"),
    ("#8c6a1a", "#d4b24c"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_has_round_numbers() {
        let ticks = Scale::linear(47.0, 0.0, 100.0).ticks();
        assert_eq!(ticks, [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
        let scale = Scale::decades(0.05, 40.0, 0.0, 400.0);
        assert_eq!(scale.ticks().len(), 5, "0.01 to 100");
        assert!((scale.at(1.0) - 200.0).abs() < 1e-9);
    }

    #[test]
    fn numbers_have_three_digits_that_count() {
        let shown = [0.0, 0.0452, 0.5, 3.149, 12.0, 47.06, 123.6, 5248.0].map(number);
        let expected = ["0", "0.0452", "0.5", "3.15", "12", "47.1", "124", "5248"];
        assert_eq!(shown, expected);
    }

    #[test]
    fn text_is_escaped() {
        let picture = bars("a < b & c", "", "µs", &[], true);
        assert!(picture.contains("a &lt; b &amp; c"));
    }
}
