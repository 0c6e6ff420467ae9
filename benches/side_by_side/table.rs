//! Values of many rounds become rows, and rows become Markdown and JSON.

use serde_json::{Value, json};

/// One round: the value of conmon and that of conward; `None` where the round failed.
pub type Pair = [Option<f64>; 2];

/// One line of the table.
#[derive(Debug)]
pub struct Row {
    pub title: String,
    pub unit: &'static str,
    /// Digits behind the point.
    pub digits: usize,
    pub pairs: Vec<Pair>,
}

impl Row {
    pub fn new(title: impl Into<String>, unit: &'static str, digits: usize, pairs: Vec<Pair>) -> Row {
        Row { title: title.into(), unit, digits, pairs }
    }

    fn column(&self, side: usize) -> Vec<f64> {
        self.pairs.iter().filter_map(|pair| pair[side]).collect()
    }

    /// conward / conmon in each round; rounds in which one failed or conmon has 0 do not count.
    fn ratios(&self) -> Vec<f64> {
        self.pairs.iter().filter_map(|pair| Some(pair[1]? / pair[0].filter(|base| *base > 0.0)?)).collect()
    }

    fn markdown(&self) -> String {
        let median = |side| quantile(&self.column(side), 0.5);
        let cell = |side| median(side).map_or("–".to_string(), |value| format!("{value:.*}", self.digits));
        let ratios = self.ratios();
        let quantiles = [0.5, 0.25, 0.75].map(|share| quantile(&ratios, share));
        let ratio = match quantiles {
            [Some(middle), Some(low), Some(high)] if ratios.len() > 1 => {
                format!("**{middle:.2}** ({low:.2}–{high:.2})")
            }
            [Some(middle), ..] => format!("**{middle:.2}**"),
            _ => "–".to_string(),
        };
        format!("| {} | {} | {} | {} | {ratio} |", self.title, self.unit, cell(0), cell(1))
    }

    fn json(&self) -> Value {
        let ratios = self.ratios();
        json!({
            "title": self.title, "unit": self.unit,
            "conmon": self.pairs.iter().map(|pair| pair[0]).collect::<Vec<_>>(),
            "conward": self.pairs.iter().map(|pair| pair[1]).collect::<Vec<_>>(),
            "median": { "conmon": quantile(&self.column(0), 0.5), "conward": quantile(&self.column(1), 0.5) },
            "ratio": {
                "median": quantile(&ratios, 0.5), "q25": quantile(&ratios, 0.25), "q75": quantile(&ratios, 0.75),
            },
        })
    }
}

pub fn markdown(rows: &[Row]) -> String {
    let mut text = String::from("| what | unit | conmon | conward | conward / conmon |\n|---|---|--:|--:|--:|\n");
    for row in rows {
        text += &row.markdown();
        text.push('\n');
    }
    text
}

pub fn json(rows: &[Row], machine: &[(&str, String)], remarks: &[String]) -> Value {
    let machine: serde_json::Map<String, Value> =
        machine.iter().map(|(key, value)| ((*key).into(), json!(value))).collect();
    json!({ "machine": machine, "rows": rows.iter().map(Row::json).collect::<Vec<_>>(), "remarks": remarks })
}

/// The value below which `share` of the values lie, interpolated.
pub fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let steps = sorted.len().checked_sub(1)?;
    let place = share * steps as f64;
    let below = (0..steps).take_while(|step| (step + 1) as f64 <= place).count();
    let above = (below + 1).min(steps);
    Some(sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64))
}
