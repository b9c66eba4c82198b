//! The types of the GPU path for a build without the feature `gpu`. [`Gpu`], [`DeviceArray`] and [`DeviceTargets`] have no values, so a device is
//! always the CPU there, and code that handles a GPU needs no conditional compilation.

use std::ops::Range;
use std::time::Duration;

use crate::plan::Traffic;
use crate::problem::dtype::Elements;
use crate::problem::limits::Settings;
use crate::problem::operation::Op;
use crate::problem::request::{Operands, Request};
use crate::problem::waiting::Reading;
use crate::problem::waiting::Waiting;
use crate::{Adapter, DType, DeviceChoice, Error, RejectedAdapter, Shape, Tuning};

#[derive(Clone, Debug)]
pub enum Gpu {}

pub(crate) struct Opened {
    pub(crate) gpu: Gpu,
    pub(crate) reason: String,
    pub(crate) rejected_adapters: Vec<RejectedAdapter>,
}

pub(crate) struct Refused {
    pub(crate) reason: String,
    pub(crate) rejected_adapters: Vec<RejectedAdapter>,
}

pub(crate) async fn open(_: &DeviceChoice) -> Result<Opened, Refused> {
    Err(Refused { reason: "built without the feature `gpu`".to_owned(), rejected_adapters: Vec::new() })
}

pub(crate) async fn list() -> Vec<Adapter> {
    Vec::new()
}

pub(crate) struct Failed {
    pub(crate) error: Error,
    pub(crate) rows_done: usize,
}

impl Gpu {
    pub(crate) fn name(&self) -> &str {
        match *self {}
    }

    pub(crate) fn backend(&self) -> &'static str {
        match *self {}
    }

    pub(crate) fn tuning(&self) -> Tuning {
        match *self {}
    }

    pub(crate) fn with_tuning(&self, _: Tuning) -> Result<Self, Error> {
        match *self {}
    }

    pub(crate) async fn run(
        &self,
        _: &mut Request<'_>,
        _whole: bool,
        _: Settings,
        _: Waiting,
    ) -> Result<Option<String>, Failed> {
        match *self {}
    }

    pub(crate) async fn upload(
        &self,
        _: Shape,
        _: (Elements<'_>, usize),
        _: Settings,
        _: Waiting,
    ) -> Result<DeviceArray, Error> {
        match *self {}
    }

    pub(crate) async fn upload_targets(
        &self,
        _: Shape,
        _: &Operands<'_>,
        _: Settings,
        _: Waiting,
    ) -> Result<DeviceTargets, Error> {
        match *self {}
    }
}

#[derive(Clone, Debug)]
pub(crate) enum DeviceArray {}

#[derive(Clone, Debug)]
pub(crate) enum DeviceTargets {}

#[derive(Clone, Copy, Default)]
pub(crate) struct DeviceOperands<'h> {
    pub(crate) targets: Option<&'h DeviceTargets>,
    pub(crate) upstream: Option<&'h DeviceArray>,
    pub(crate) log_sum_exps: Option<&'h DeviceArray>,
}

pub(crate) struct Results {
    pub(crate) elements: Option<DeviceArray>,
    pub(crate) rows: Option<DeviceArray>,
    pub(crate) summary: Option<DeviceArray>,
}

impl DeviceArray {
    pub(crate) async fn read<T>(&self, _: Range<usize>, _: Settings, _: Waiting) -> Result<Vec<T>, Error> {
        match *self {}
    }

    pub(crate) async fn run(&self, _: Op, _: DType, _: &Operands<'_>, _: DeviceOperands<'_>) -> Result<Results, Error> {
        match *self {}
    }

    pub(crate) async fn sum(&self, _: Settings, _: Waiting) -> Result<f64, Error> {
        match *self {}
    }
}

pub(crate) struct DeviceInputs {
    pub(crate) logits: DeviceArray,
    pub(crate) targets: Option<DeviceTargets>,
    pub(crate) upstream: Option<DeviceArray>,
    pub(crate) log_sum_exps: Option<DeviceArray>,
}

pub(crate) enum Timing {}

impl Timing {
    pub(crate) fn sets(inputs: &DeviceInputs, _bytes: u64) -> u64 {
        match inputs.logits {}
    }

    pub(crate) async fn new(inputs: Vec<DeviceInputs>, _: Op, _: DType, _: &Operands<'_>) -> Result<Self, Error> {
        match inputs.first() {
            Some(inputs) => match inputs.logits {},
            None => Err(Error::NoGpu { wanted: "gpu".to_owned(), reason: "no inputs".to_owned() }),
        }
    }

    pub(crate) fn is_hardware(&self) -> bool {
        match *self {}
    }

    pub(crate) fn traffic(&self) -> Traffic {
        match *self {}
    }

    pub(crate) fn operation(&mut self, _timeout: Duration) -> Result<Reading, Error> {
        match *self {}
    }

    pub(crate) fn copy(&mut self, _timeout: Duration) -> Result<Reading, Error> {
        match *self {}
    }
}
