// A stand-in for `helm template`, for machines without helm: renders a chart with the libraries that helm renders with.
//
//	helm-template template NAME CHART --namespace NAMESPACE [--values FILE]... [--notes]
//
// What it is: Go's text/template, sprig and sigs.k8s.io/yaml, the functions that helm adds (as far as this chart uses
// them: a template with another one fails to parse), and values merged as helm merges them. What it is not: it does not
// lint, validate values.schema.json, read dependencies, sort by kind, or talk to a cluster.
// Follows https://helm.sh/docs/chart_template_guide/ and https://helm.sh/docs/topics/charts/.
// Debian's packages are laid out for builds without modules (scripts/install-helm-template).
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig"
	"sigs.k8s.io/yaml"
)

type values = map[string]interface{}

type metadata struct {
	Name       string `json:"name"`
	Version    string `json:"version"`
	AppVersion string `json:"appVersion"`
}

func main() {
	output, err := render(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
	fmt.Print(output)
}

func render(arguments []string) (string, error) {
	var words, files []string
	namespace, isNotes := "default", false
	for len(arguments) > 0 {
		word := arguments[0]
		arguments = arguments[1:]
		if word == "--notes" {
			isNotes = true
		} else if strings.HasPrefix(word, "--") {
			if len(arguments) == 0 {
				return "", fmt.Errorf("%s needs a value", word)
			}
			switch word {
			case "--namespace":
				namespace = arguments[0]
			case "--values":
				files = append(files, arguments[0])
			default:
				return "", fmt.Errorf("unknown option %s", word)
			}
			arguments = arguments[1:]
		} else {
			words = append(words, word)
		}
	}
	if len(words) != 3 || words[0] != "template" {
		return "", errors.New("usage: helm-template template NAME CHART [--namespace NAMESPACE] [--values FILE]...")
	}
	directory := words[2]

	var chart metadata
	if err := load(filepath.Join(directory, "Chart.yaml"), &chart); err != nil {
		return "", err
	}
	given := values{}
	for _, file := range files {
		var more values
		if err := load(file, &more); err != nil {
			return "", err
		}
		given = override(given, more)
	}
	var defaults values
	if err := load(filepath.Join(directory, "values.yaml"), &defaults); err != nil {
		return "", err
	}
	scope := values{
		"Values": withDefaults(given, defaults),
		"Chart":  chart,
		"Release": values{
			"Name": words[1], "Namespace": namespace, "Service": "Helm", "Revision": 1, "IsInstall": true, "IsUpgrade": false,
		},
	}
	return execute(chart.Name, filepath.Join(directory, "templates"), scope, isNotes)
}

func load(path string, into interface{}) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// override returns the values of one file, overridden by those of the next.
func override(first, second values) values {
	merged := values{}
	for key, value := range first {
		merged[key] = value
	}
	for key, value := range second {
		before, wasMap := merged[key].(values)
		if now, isMap := value.(values); wasMap && isMap {
			value = override(before, now)
		}
		merged[key] = value
	}
	return merged
}

// withDefaults returns values with the chart's defaults for those that are missing. A null removes a default.
func withDefaults(given, defaults values) values {
	merged := values{}
	for key, value := range defaults {
		merged[key] = value
	}
	for key, value := range given {
		if value == nil {
			delete(merged, key)
			continue
		}
		before, wasMap := merged[key].(values)
		if now, isMap := value.(values); wasMap && isMap {
			value = withDefaults(now, before)
		}
		merged[key] = value
	}
	return merged
}

func execute(name, directory string, scope values, isNotes bool) (string, error) {
	root := template.New("gotpl").Option("missingkey=zero")
	functions := sprig.TxtFuncMap()
	delete(functions, "env")
	delete(functions, "expandenv")
	functions["getHostByName"] = func(string) string { return "" }
	functions["toYaml"] = func(value interface{}) string {
		text, err := yaml.Marshal(value)
		if err != nil {
			return ""
		}
		return strings.TrimSuffix(string(text), "\n")
	}
	functions["include"] = func(template string, data interface{}) (string, error) {
		var text strings.Builder
		err := root.ExecuteTemplate(&text, template, data)
		return text.String(), err
	}
	functions["required"] = func(warning string, value interface{}) (interface{}, error) {
		if value == nil || value == "" {
			return value, errors.New(warning)
		}
		return value, nil
	}
	functions["fail"] = func(message string) (string, error) { return "", errors.New(message) }
	root.Funcs(functions)

	files, err := filepath.Glob(filepath.Join(directory, "*"))
	if err != nil {
		return "", err
	}
	sort.Strings(files)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		if _, err := root.New(filepath.Base(file)).Parse(string(text)); err != nil {
			return "", err
		}
	}
	var output strings.Builder
	for _, file := range files {
		base := filepath.Base(file)
		if strings.HasPrefix(base, "_") || (base == "NOTES.txt") != isNotes {
			continue
		}
		var text strings.Builder
		if err := root.ExecuteTemplate(&text, base, scope); err != nil {
			return "", err
		}
		rendered := strings.ReplaceAll(text.String(), "<no value>", "")
		if isNotes {
			return rendered, nil
		}
		if strings.TrimSpace(rendered) != "" {
			fmt.Fprintf(&output, "---\n# Source: %s/templates/%s\n%s\n", name, base, strings.Trim(rendered, "\n"))
		}
	}
	return output.String(), nil
}
