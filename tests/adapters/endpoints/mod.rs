//! The stand-ins for AWS are as strict as the tests of the adapters and functions need them to be.

mod dynamo;
mod lambda;
mod presigned;
mod s3;
mod s3_multipart;
mod sqs;
