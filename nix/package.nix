# revq's programs and unit files. Stands alone: pkgs.callPackage ./nix/package.nix { }
{
  lib,
  stdenv,
  buildGoModule,
  installShellFiles,
  # As Go itself would write it: 0.0.0-TIME-COMMIT. The flake knows both.
  version ? "0.0.0",
}:

buildGoModule (finalAttrs: {
  pname = "revq";
  inherit version;

  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../go.mod
      ../go.sum
      ../cmd
      (lib.fileset.fileFilter (file: !file.hasExt "md") ../internal)
    ];
  };

  # After a change of go.mod or go.sum: nix/check vendor --fix
  vendorHash = "sha256-SAIokvAMqUQ2YPKH8+lVMcHh4coxzKH4pJtYbKFpTYY=";

  # The dependencies are fetched when go.sum changes, not with each version.
  goSum = ../go.sum;
  overrideModAttrs = _: previous: {
    name = lib.replaceString "-${finalAttrs.version}" "" previous.name;
  };

  env.CGO_ENABLED = 0;

  ldflags = [
    "-s"
    "-w"
    "-X github.com/revq/revq/internal/command.version=v${finalAttrs.version}"
  ];

  # There is no RabbitMQ in the build: what needs one skips itself.
  checkFlags = [ "-short" ];

  nativeBuildInputs = [ installShellFiles ];

  postInstall = lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
    for program in $out/bin/*; do
      installShellCompletion --cmd "''${program##*/}" \
        --bash <("$program" completion bash) \
        --fish <("$program" completion fish) \
        --zsh <("$program" completion zsh)
    done
  '';

  meta = {
    description = "Task queue over RabbitMQ whose results are pushed to listeners";
    homepage = "https://github.com/revq/revq";
    license = lib.licenses.mit;
    mainProgram = "revq";
    platforms = lib.platforms.linux;
  };
})
