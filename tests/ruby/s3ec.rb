# The Ruby client of the Amazon S3 Encryption Client (Debian's ruby-aws-sdk-s3), as a command:
#
#   ruby s3ec.rb ENDPOINT BUCKET put|get VERSION WITH KEYFILE PLACE OBJECT FILE [CONTEXT-JSON]
#
# VERSION: 1 or 2. WITH: aes, rsa, kms. KEYFILE: base64, PEM, or the id of the key of KMS itself. PLACE:
# metadata or instruction_file. CONTEXT-JSON: of kms in version 2.
require 'aws-sdk-s3'
require 'aws-sdk-kms'
require 'base64'
require 'json'

endpoint, bucket, action, version, with, key, place, object, file, context = ARGV
creds = Aws::Credentials.new('moto', 'moto')
base = { endpoint: endpoint, region: 'us-east-1', credentials: creds }
s3 = Aws::S3::Client.new(base.merge(force_path_style: true))
material =
  case with
  when 'aes' then { encryption_key: Base64.decode64(File.read(key)) }
  when 'rsa' then { encryption_key: OpenSSL::PKey::RSA.new(File.read(key)) }
  when 'kms'
    # Debian's client of KMS is older than Decrypt's KeyId, which a named key would be sent as.
    id = action == 'get' ? :kms_allow_decrypt_with_any_cmk : key
    { kms_key_id: id, kms_client: Aws::KMS::Client.new(base) }
  end
options = material.merge(client: s3, envelope_location: place.to_sym)
client =
  if version == '1'
    Aws::S3::Encryption::Client.new(options)
  else
    schema = { 'aes' => :aes_gcm, 'rsa' => :rsa_oaep_sha1, 'kms' => :kms_context }[with]
    Aws::S3::EncryptionV2::Client.new(
      options.merge(
        key_wrap_schema: schema,
        content_encryption_schema: :aes_gcm_no_padding,
        security_profile: :v2
      )
    )
  end
extra = context ? { kms_encryption_context: JSON.parse(context) } : {}
case action
when 'put'
  client.put_object({ bucket: bucket, key: object, body: File.binread(file) }.merge(extra))
when 'get'
  body = client.get_object({ bucket: bucket, key: object }.merge(extra)).body.read
  File.binwrite(file, body)
end
