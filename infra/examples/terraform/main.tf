# Stopover from the files of a release (`make package`), without Rust: docs/how-to/aws-releases.md.

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.0"
    }
  }
}

variable "release" {
  description = "The directory that has the files of the release"
  type        = string
}

variable "version_of_release" {
  description = "Its version: a prefix in the bucket"
  type        = string
}

variable "bucket" {
  description = "A bucket in the region of the cache"
  type        = string
}

resource "aws_s3_object" "package" {
  for_each = toset(["registry-arm64.zip", "filler-arm64.zip", "configuration.zip"])

  bucket      = var.bucket
  key         = "stopover/${var.version_of_release}/${each.value}"
  source      = "${var.release}/${each.value}"
  source_hash = filesha256("${var.release}/${each.value}")
}

resource "aws_cloudformation_stack" "stopover" {
  name          = "stopover"
  template_body = file("${var.release}/template.json")
  capabilities  = ["CAPABILITY_IAM"]
  parameters = {
    PackageBucket  = var.bucket
    PackagePrefix  = "stopover/${var.version_of_release}/"
    Architecture   = "arm64"
    AnonymousCidrs = "203.0.113.0/24"
  }
  tags = {
    app = "stopover"
  }
  depends_on = [aws_s3_object.package]
}

output "endpoint" {
  value = aws_cloudformation_stack.stopover.outputs["MirrorEndpoint"]
}
