//! The reference: one row in float64, straight from the definitions, sharing no code with the crate.

/// A row of logits, reduced in float64.
pub struct Row<'a> {
    logits: &'a [f32],
    max: f64,
    /// Sum of exp(x_j - max) over all classes but the first maximum.
    others: f64,
    first: usize,
}

impl<'a> Row<'a> {
    pub fn new(logits: &'a [f32]) -> Self {
        // As PyTorch's argmax: the first NaN, else the first maximum.
        let first = logits.iter().position(|x| x.is_nan()).unwrap_or_else(|| {
            let mut best = 0;
            for (j, &x) in logits.iter().enumerate() {
                if x > logits[best] {
                    best = j;
                }
            }
            best
        });
        let max = f64::from(logits[first]);
        let terms = logits.iter().enumerate().filter(|&(j, _)| j != first);
        let others = terms.map(|(_, &x)| (f64::from(x) - max).exp()).sum();
        Self { logits, max, others, first }
    }

    /// Whether softmax has a value: no NaN, no `+inf`, and not `-inf` throughout.
    pub fn is_regular(&self) -> bool {
        self.max.is_finite()
    }

    fn or_nan(&self, value: f64) -> f64 {
        if self.is_regular() { value } else { f64::NAN }
    }

    pub fn argmax(&self) -> usize {
        self.first
    }

    pub fn log_sum_exp(&self) -> f64 {
        if self.is_regular() { self.max + self.others.ln_1p() } else { self.max }
    }

    pub fn log_probability(&self, class: usize) -> f64 {
        self.or_nan((f64::from(self.logits[class]) - self.max) - self.others.ln_1p())
    }

    pub fn probability(&self, class: usize) -> f64 {
        self.or_nan((f64::from(self.logits[class]) - self.max).exp() / (1.0 + self.others))
    }

    /// d(-log p_target) / d(x_class)
    pub fn gradient(&self, class: usize, target: usize) -> f64 {
        if class != target {
            return self.probability(class);
        }
        // 1 - p from all the others, for p next to 1.
        let terms = self.logits.iter().enumerate().filter(|&(j, _)| j != target);
        let others: f64 =
            if target == self.first { self.others } else { terms.map(|(_, &x)| (f64::from(x) - self.max).exp()).sum() };
        self.or_nan(-others / (1.0 + self.others))
    }
}
