//! One picture into a JPEG.

use std::sync::{Arc, Mutex, PoisonError};

use gstreamer as gst;
use gstreamer_app::{AppSink, AppSinkCallbacks, AppSrc};
use gstreamer_video::{VideoFormat, VideoFrameExt, VideoFrameRef, VideoInfo};
use tokio_util::sync::CancellationToken;

use super::plane::{Plane, PlaneMut};
use super::runner::Pipeline;
use super::{MediaError, Pipelines, fragment};

/// A picture in memory: luma, and two chroma planes of half its width and height.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Pixels; even.
    pub width: usize,
    /// Pixels; even.
    pub height: usize,
    planes: [Vec<u8>; 3],
}

impl Image {
    /// A black one.
    #[must_use]
    pub fn new(width: usize, height: usize) -> Self {
        let chroma = || vec![128; width / 2 * (height / 2)];
        Self { width, height, planes: [vec![16; width * height], chroma(), chroma()] }
    }

    fn size(&self, plane: usize) -> (usize, usize) {
        if plane == 0 { (self.width, self.height) } else { (self.width / 2, self.height / 2) }
    }

    /// A plane to read.
    #[must_use]
    pub fn plane(&self, n: usize) -> Plane<'_> {
        let (width, height) = self.size(n);
        Plane { data: &self.planes[n], stride: width, width, height }
    }

    /// A plane to write.
    pub fn plane_mut(&mut self, n: usize) -> PlaneMut<'_> {
        let (width, height) = self.size(n);
        PlaneMut { data: &mut self.planes[n], stride: width, width, height }
    }

    /// All planes to write.
    pub fn planes_mut(&mut self) -> [PlaneMut<'_>; 3] {
        let (width, height) = (self.width, self.height);
        let [luma, blue, red] = &mut self.planes;
        let plane =
            |data, half: usize| PlaneMut { data, stride: width / half, width: width / half, height: height / half };
        [plane(luma, 1), plane(blue, 2), plane(red, 2)]
    }

    /// Copies another one into a place of it. What lies outside is left out; places are even.
    pub fn copy(&mut self, other: &Self, left: usize, top: usize) {
        for n in 0..3 {
            let shift = usize::from(n > 0);
            let (from, to) = (other.plane(n), self.plane_mut(n));
            let (left, top) = (left >> shift, top >> shift);
            let width = from.width.min(to.width.saturating_sub(left));
            for y in 0..from.height.min(to.height.saturating_sub(top)) {
                to.data[(top + y) * to.stride + left..][..width].copy_from_slice(&from.row(y)[..width]);
            }
        }
    }
}

fn failed(what: &str) -> MediaError {
    MediaError::Element { element: "still".to_owned(), what: what.to_owned() }
}

/// Makes a JPEG of a picture. Blocking.
///
/// # Errors
/// When an element fails, or nothing comes out of it.
pub fn jpeg(image: &Image, pipelines: &Pipelines) -> Result<Vec<u8>, MediaError> {
    let pipeline = Pipeline::parse("still", &fragment::load("still", pipelines.dir.as_deref())?.text)?;
    let (width, height) = (u32::try_from(image.width), u32::try_from(image.height));
    let (Ok(width), Ok(height)) = (width, height) else { return Err(failed("the picture is too large")) };
    let info = VideoInfo::builder(VideoFormat::I420, width, height).fps(gst::Fraction::new(1, 1)).build();
    let info = info.map_err(|e| failed(&e.to_string()))?;
    let source = pipeline.named::<AppSrc>("picture")?;
    source.set_caps(Some(&info.to_caps().map_err(|e| failed(&e.to_string()))?));
    let coded = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&coded);
    let take = move |sink: &AppSink| {
        let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
        let data = sample.buffer().and_then(|buffer| buffer.map_readable().ok()).map(|map| map.to_vec());
        *keep.lock().unwrap_or_else(PoisonError::into_inner) = data;
        Ok(gst::FlowSuccess::Ok)
    };
    let sink = pipeline.named::<AppSink>("coded-picture")?;
    sink.set_callbacks(AppSinkCallbacks::builder().new_sample(take).build());
    pipeline.start()?;
    source.push_buffer(buffer(image, &info)?).map_err(|e| failed(&e.to_string()))?;
    source.end_of_stream().map_err(|e| failed(&e.to_string()))?;
    let ended = pipeline.wait_end(pipelines.stall, &CancellationToken::new(), |_| 0)?;
    ended.done().expect("nothing cancels the new token");
    let coded = coded.lock().unwrap_or_else(PoisonError::into_inner).take();
    coded.ok_or_else(|| failed("no picture came out"))
}

fn buffer(image: &Image, info: &VideoInfo) -> Result<gst::Buffer, MediaError> {
    let mut buffer = gst::Buffer::with_size(info.size()).map_err(|e| failed(&e.to_string()))?;
    {
        let writable = buffer.get_mut().ok_or_else(|| failed("a new buffer is not ours"))?;
        writable.set_pts(gst::ClockTime::ZERO);
        let frame = VideoFrameRef::from_buffer_ref_writable(writable, info);
        let mut frame = frame.map_err(|_| failed("a new buffer cannot be written"))?;
        for n in 0..3_usize {
            let (plane, index) = (image.plane(n), u32::try_from(n).unwrap_or(0));
            let stride = usize::try_from(frame.plane_stride()[n]).unwrap_or(0);
            let data = frame.plane_data_mut(index).map_err(|_| failed("a new buffer has no such plane"))?;
            for y in 0..plane.height {
                data[y * stride..][..plane.width].copy_from_slice(plane.row(y));
            }
        }
    }
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_becomes_a_jpeg() {
        super::super::init().expect("GStreamer");
        let mut sheet = Image::new(64, 32);
        let mut white = Image::new(16, 16);
        white.plane_mut(0).data.fill(235);
        sheet.copy(&white, 56, 24);
        assert_eq!(sheet.plane(0).row(23)[56], 16);
        assert_eq!(sheet.plane(0).row(24)[55..57], [16, 235]);
        let jpeg = jpeg(&sheet, &Pipelines::default()).expect("jpeg");
        assert!(jpeg.starts_with(&[0xff, 0xd8, 0xff]) && jpeg.ends_with(&[0xff, 0xd9]), "{} bytes", jpeg.len());
    }
}
