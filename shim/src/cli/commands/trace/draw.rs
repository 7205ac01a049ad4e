//! Timelines as text and as pictures.

use std::fmt::Write as _;

use serde_json::Value;

use super::title;

/// Columns of the bars of a text.
const COLUMNS: usize = 40;

/// Pixels of a picture.
const LEFT: f64 = 90.0;
const WIDTH: f64 = 600.0;
const RIGHT: f64 = 90.0;
const ROW: f64 = 24.0;
const TOP: f64 = 44.0;

struct Step {
    name: String,
    start_ms: f64,
    ms: f64,
}

/// Steps beside a scale of time.
pub(super) struct Chart {
    title: String,
    request: String,
    steps: Vec<Step>,
    from_ms: f64,
    to_ms: f64,
}

impl Chart {
    pub(super) fn of(trace: &Value) -> Self {
        let step = |step: &Value| Step {
            name: step["name"].as_str().unwrap_or("-").to_owned(),
            start_ms: step["start_ms"].as_f64().unwrap_or_default(),
            ms: step["ms"].as_f64().unwrap_or_default().max(0.0),
        };
        let steps: Vec<Step> = trace["steps"].as_array().into_iter().flatten().map(step).collect();
        let from_ms = steps.iter().map(|step| step.start_ms).fold(0.0, f64::min);
        let to_ms = steps.iter().map(|step| step.start_ms + step.ms).fold(from_ms, f64::max);
        let request = trace["request_id"].as_str().unwrap_or("-").to_owned();
        Self { title: title(trace), request, steps, from_ms, to_ms }
    }

    /// Where a time is, from 0 to 1.
    fn place(&self, ms: f64) -> f64 {
        let whole = self.to_ms - self.from_ms;
        if whole > 0.0 { ((ms - self.from_ms) / whole).clamp(0.0, 1.0) } else { 0.0 }
    }

    pub(super) fn text(&self) -> String {
        let mut text = format!("{}\nrequest {}, {:.1} ms in all", self.title, self.request, self.to_ms);
        for step in &self.steps {
            // Nobody sees less than a column.
            let column = |ms| (self.place(ms) * COLUMNS as f64).round() as usize;
            let begin = column(step.start_ms).min(COLUMNS - 1);
            let end = column(step.start_ms + step.ms).max(begin + 1);
            let bar = format!("{}{}", " ".repeat(begin), "█".repeat(end - begin));
            let _ = write!(text, "\n  {:<10} {bar:<COLUMNS$} {:>9.1} ms", step.name, step.ms);
        }
        text
    }

    pub(super) fn svg(&self) -> String {
        let height = TOP + ROW * self.steps.len() as f64 + 12.0;
        let width = LEFT + WIDTH + RIGHT;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"8\" y=\"18\" font-weight=\"bold\">{}</text>\n\
             <text x=\"8\" y=\"34\" fill=\"#555\">request {}, {:.1} ms in all</text>\n",
            escaped(&self.title),
            escaped(&self.request),
            self.to_ms
        );
        for (number, step) in self.steps.iter().enumerate() {
            let y = TOP + ROW * number as f64;
            let begin = LEFT + WIDTH * self.place(step.start_ms);
            let end = LEFT + WIDTH * self.place(step.start_ms + step.ms);
            let colour = if step.name == "invoke" { "#2e7d32" } else { "#1565c0" };
            let (name, ms) = (escaped(&step.name), step.ms);
            let _ = writeln!(
                svg,
                "<text x=\"8\" y=\"{:.1}\">{name}</text>\
                 <rect x=\"{begin:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"14\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\">{ms:.1} ms</text>",
                y + 12.0,
                y + 1.0,
                (end - begin).max(1.0),
                end + 6.0,
                y + 12.0
            );
        }
        svg + "</svg>\n"
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cold() -> Value {
        json!({
            "request_id": "1-abc", "namespace": "default", "function": "resize", "revision": 3,
            "instance": "c-1", "cold": true, "status": 200, "error": null,
            "steps": [
                {"name": "wait", "start_ms": 0.0, "ms": 60.0},
                {"name": "rootfs", "start_ms": 0.0, "ms": 2.0},
                {"name": "listen", "start_ms": 20.0, "ms": 40.0},
                {"name": "invoke", "start_ms": 60.0, "ms": 20.0},
            ],
        })
    }

    #[test]
    fn a_text_has_a_bar_for_each_step() {
        let text = Chart::of(&cold()).text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "resize revision 3 on c-1: 200, cold start");
        assert_eq!(lines[1], "request 1-abc, 80.0 ms in all");
        let bars: Vec<(usize, usize)> = lines[2..]
            .iter()
            .map(|line| {
                let bar: Vec<char> = line.chars().skip(13).take(COLUMNS).collect();
                let begin = bar.iter().take_while(|c| **c == ' ').count();
                (begin, bar.iter().filter(|c| **c == '█').count())
            })
            .collect();
        assert_eq!(bars, [(0, 30), (0, 1), (10, 20), (30, 10)]);
        assert!(lines[5].ends_with("     20.0 ms"), "{}", lines[5]);
    }

    #[test]
    fn a_picture_is_whole_and_takes_no_markup_from_names() {
        let mut trace = cold();
        trace["function"] = json!("<script>&\"");
        let svg = Chart::of(&trace).svg();
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{svg}");
        assert_eq!(svg.matches("<rect").count(), 1 + 4);
        assert!(svg.contains("&lt;script&gt;&amp;&quot;") && !svg.contains("<script"), "{svg}");
    }

    #[test]
    fn whatever_comes_is_drawn() {
        for trace in
            [json!({}), json!({"steps": [{}]}), json!({"steps": [{"name": "x", "start_ms": -5, "ms": -1}]})]
        {
            let chart = Chart::of(&trace);
            assert!(chart.text().contains("in all") && chart.svg().contains("</svg>"));
        }
    }
}
