function _karmactl_completion
    set -l line (commandline -cp | string collect)
    set -l response (env _KARMACTL_COMPLETE=fish_complete COMP_LINE=$line karmactl 2>/dev/null)
    for completion in $response
        set -l metadata (string split -m 1 -- "," $completion)
        switch $metadata[1]
            case dir
                __fish_complete_directories $metadata[2]
            case file
                __fish_complete_path $metadata[2]
            case plain
                printf '%s\n' $metadata[2]
        end
    end
end

complete --no-files --command karmactl --arguments "(_karmactl_completion)"
