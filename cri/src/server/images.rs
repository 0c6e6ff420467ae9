//! ImageService.

use k8s_cri::v1::image_service_server::ImageService;
use k8s_cri::v1::*;
use tonic::{Request, Response, Status};

use super::{Service, convert};
use crate::error::Error;
use crate::image::Credentials;

type Answer<T> = std::result::Result<Response<T>, Status>;

fn named(image: Option<ImageSpec>) -> Result<String, Error> {
    image.map(|image| image.image).filter(|name| !name.is_empty()).ok_or_else(|| Error::invalid("image is empty"))
}

#[tonic::async_trait]
impl ImageService for Service {
    async fn list_images(&self, request: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        let wanted = request.into_inner().filter.and_then(|filter| filter.image).map(|image| image.image);
        let images = match wanted.filter(|name| !name.is_empty()) {
            Some(name) => self.0.images_blocking(move |images| Ok(images.find(&name).into_iter().collect())).await?,
            None => self.0.images_blocking(|images| Ok(images.list())).await?,
        };
        Ok(Response::new(ListImagesResponse { images: images.iter().map(convert::image).collect() }))
    }

    async fn image_status(&self, request: Request<ImageStatusRequest>) -> Answer<ImageStatusResponse> {
        let request = request.into_inner();
        let name = named(request.image)?;
        let found = self.0.images_blocking(move |images| Ok(images.find(&name))).await?;
        let info = match &found {
            Some(image) if request.verbose => convert::image_info(image),
            _ => Default::default(),
        };
        Ok(Response::new(ImageStatusResponse { image: found.as_ref().map(convert::image), info }))
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        let request = request.into_inner();
        let name = named(request.image)?;
        let auth = request.auth.map(|auth| Credentials {
            username: auth.username,
            password: auth.password,
            auth: auth.auth,
            registry_token: auth.registry_token,
        });
        let image = self.0.images.pull(&name, auth).await.map_err(Status::from);
        self.0.calls.pulled(image.as_ref().map_or_else(Status::code, |_| tonic::Code::Ok));
        let image = image?;
        let image_ref = image.digests.first().cloned().unwrap_or(image.id);
        Ok(Response::new(PullImageResponse { image_ref }))
    }

    async fn remove_image(&self, request: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        let name = named(request.into_inner().image)?;
        self.0.images_blocking(move |images| images.remove(&name)).await?;
        Ok(Response::new(RemoveImageResponse {}))
    }

    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Answer<ImageFsInfoResponse> {
        let usage = convert::filesystem(&self.0.images.usage());
        Ok(Response::new(ImageFsInfoResponse {
            image_filesystems: vec![usage.clone()],
            container_filesystems: vec![usage],
        }))
    }
}
